"""Torch-Pruning's side of the quality benchmark, run in its own environment: models in, pruned models out.

    python quality_worker.py JOB RESULT

The job is a file of tensors and plain values (network, state dict, calibration data, targets, criteria), the result a
file of pruned models; ``quality.py`` writes the one, reads the other and measures both tools' models in the same way.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quality_networks as networks
import torch
import torch_pruning as tp
from torch import Tensor, nn

STEPS = 8
"""Halvings of the search for a ratio: it is found to 1/256."""

CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


class Cutter:
    """Cuts copies of one trained model with one criterion, local or global, all but the layer `output`."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        gradients: list[list[Tensor]],
        criterion: str,
        everywhere: bool,
        output: str = "head",
    ) -> None:
        self._model, self._x, self._criterion, self._everywhere = model, x, criterion, everywhere
        self._gradients, self._output = gradients, output
        self._made: dict[int, tuple[float, nn.Module] | None] = {}

    def cut(self, ratio: float) -> nn.Module:
        """Prunes a copy, with the hints that Torch-Pruning's own examples pass.

        The classifier is ignored; packed query-key-value layers come with their number of heads; where attention is
        a layer of PyTorch, sizes are rounded to its heads.
        """
        model = copy.deepcopy(self._model)
        importance = CRITERIA[self._criterion]()
        self._give_gradients(model, importance)
        heads = {m.qkv: m.heads for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)}
        whole = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
        pruner = tp.pruner.MagnitudePruner(
            model,
            self._x[:1],
            importance=importance,
            global_pruning=self._everywhere,
            pruning_ratio=ratio,
            ignored_layers=[model.get_submodule(self._output)],
            num_heads=heads,
            round_to=whole[0] if whole else None,
        )
        pruner.step()
        model.zero_grad()
        return model.eval()

    def _give_gradients(self, model: nn.Module, importance: Any) -> None:
        if self._criterion == "hessian":
            importance.zero_grad()
        for sample in self._gradients:
            for parameter, gradient in zip(model.parameters(), sample, strict=True):
                parameter.grad = gradient
            if self._criterion == "hessian":
                importance.accumulate_grad(model)
        for parameter in model.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()

    def at(self, step: int) -> tuple[float, nn.Module] | None:
        """The MACs and the model at a ratio of ``step / 2 ** STEPS``, or None where the cut model doesn't run."""
        if step not in self._made:
            model = self.cut(step / 2**STEPS)
            try:
                self._made[step] = (networks.count_macs(model, self._x[:1]), model)
            except RuntimeError:
                self._made[step] = None
        return self._made[step]

    def largest_within(self, allowed: float) -> tuple[float, nn.Module] | None:
        """Finds the smallest ratio at which a model costs no more than allowed, by halving."""
        low, high = 0, 2**STEPS - 1
        while high - low > 1:
            middle = (low + high) // 2
            found = self.at(middle)
            low, high = (low, middle) if found is not None and found[0] <= allowed else (middle, high)
        found = self.at(high)
        return found if found is not None and found[0] <= allowed else None


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor], criterion: str) -> list[list[Tensor]]:
    """The gradients of all parameters that a criterion asks for: none, of the mean loss, or of every sample's loss."""
    parts = {"magnitude": [], "taylor": [batch], "hessian": list(zip(*(part.split(1) for part in batch), strict=True))}
    found = []
    for x, y in parts[criterion]:  # in eval mode, samples one by one give the same as in a batch, and much faster
        model.zero_grad()
        networks.loss(model(x), y).mean().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    model.zero_grad()
    return found


def main() -> None:
    job = torch.load(sys.argv[1], weights_only=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = networks.build(job["network"], 0)
    model.load_state_dict(job["state"])
    model.eval()
    batch = (job["x"], job["y"])
    dense = networks.count_macs(model, batch[0][:1])
    rows = []
    for criterion in job["criteria"]:
        slopes = gradients(model, batch, criterion)
        for scope in ("local", "global"):
            cutter = Cutter(model, batch[0], slopes, criterion, scope == "global")
            for target in job["targets"]:
                found = cutter.largest_within(target * dense)
                cut = {"criterion": criterion, "scope": scope, "target": target}
                rows.append(cut | {"macs": found and found[0] / dense, "model": found and found[1]})
    torch.save(rows, Path(sys.argv[2]))


if __name__ == "__main__":
    main()

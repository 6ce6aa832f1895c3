"""Measuring sensitivity: every group is really cut on a copy of the model, alone, by several amounts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, RehearsalError
from prunekit_core.plans.plan import Plan
from prunekit_core.program.outputs import output_tensors
from prunekit_plugins.budgets.curves import Curve, Sensitivity
from prunekit_plugins.budgets.options import Options, free_options
from prunekit_plugins.calibration.batches import Batches

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Fractions of a group that are removed; 1 stands for all that may go."""

QUICK_RATIOS = (0.25, 0.5, 0.75, 0.9)
"""The same for a measurement on the way, where every cut is compensated before it is measured."""

Metric = Callable[[nn.Module], float]
"""How good a model is, more is better: its accuracy on some data, say."""
Progress = Callable[[int, int | None], None]
"""Called as ``progress(done, total)`` after each measurement."""
Finish = Callable[[nn.Module, Plan], None]
"""Called on every cut copy with the plan that cut it, before it is measured: compensates, say."""

OUTPUT_ERROR = "output error"
_GOLDEN = (5**0.5 - 1) / 2


class _OutputError:
    """Squared differences of all outputs to those of the whole model, relative to the whole model's squares.

    Small independent errors add up in it, which is what an allocation supposes of damages. What isn't finite in the
    whole model doesn't count.
    """

    def __init__(self, model: nn.Module, batches: Batches, device: torch.device | None) -> None:
        self._batches, self._device = batches, device
        self.examples = 0
        self._dense: list[list[torch.Tensor]] = []
        for batch, outputs in self._run(model):
            self.examples += batch.size
            self._dense.append([tensor.clone() for tensor in outputs])
        if not any(tensor.numel() for outputs in self._dense for tensor in outputs):
            raise ArgumentError("The model has no floating-point outputs to compare.", hint="give a metric")
        if not any(bool(tensor.isfinite().any()) for outputs in self._dense for tensor in outputs):
            raise ArgumentError(
                "The model returns nothing finite on calibration data.",
                why="all its outputs are NaN or infinite, so that no change of them can be measured",
                hint="look at the data and at the model's outputs on one batch; half precision may overflow",
            )

    def _run(self, model: nn.Module) -> Iterable[tuple[Any, list[torch.Tensor]]]:
        model.eval()
        for batch in self._batches.read(self._device):
            with torch.inference_mode():
                outputs = batch.example.runner(model, batch.example.args, batch.example.kwargs)
            found = [tensor for tensor in output_tensors(outputs) if tensor.is_floating_point()]
            yield batch, [_counted(tensor.double(), batch.counted(tuple(tensor.shape[:-1]))) for tensor in found]

    def __call__(self, model: nn.Module) -> float:
        wrong: dict[int, float] = {}
        whole: dict[int, float] = {}
        for (_, outputs), dense in zip(self._run(model), self._dense, strict=True):
            for place, (found, expected) in enumerate(zip(outputs, dense, strict=True)):
                finite = expected.isfinite()
                gap = found[finite] - expected[finite]
                wrong[place] = wrong.get(place, 0.0) + float(gap.square().sum())
                whole[place] = whole.get(place, 0.0) + float(expected[finite].square().sum())
        parts = [wrong[place] / whole[place] for place in wrong if whole[place]]
        return sum(parts) / len(parts) if parts else 0.0


def _counted(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return tensor if mask is None else tensor[mask]


def measure(
    pruner: Pruner,
    batches: Iterable[Any] | Batches = (),
    *,
    metric: Metric | None = None,
    ratios: Sequence[float] = RATIOS,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measures the sensitivity of the groups of a pruner that has not stepped.

    The arguments are those of `prunekit.sensitivity`.
    """
    judge: Metric
    if metric is None:
        devices = {parameter.device for parameter in pruner.graph.model.parameters()}
        error = _OutputError(
            copy.deepcopy(pruner.graph.model), Batches.of(batches), devices.pop() if len(devices) == 1 else None
        )
        judge, name, examples, base = error, OUTPUT_ERROR, error.examples, 0.0
    else:
        judge, name, examples = metric, getattr(metric, "__name__", type(metric).__name__), 0
        base = judge(copy.deepcopy(pruner.graph.model).eval())

    def damage(plan: Plan) -> float:
        small = copy.deepcopy(pruner.graph.model)
        plan.apply(small, registry=pruner.registry)
        if finish is not None:
            finish(small, plan)
        value = float(judge(small.eval()))
        found = value if metric is None else base - value
        if not math.isfinite(found):
            groups = ", ".join(cut.group for cut in plan.cuts)
            raise ArgumentError("A damage is not a finite number.", where=groups, why=f"{name}: {value}")
        return found

    chooser, every = _learnt(pruner)
    points = [_points(options, ratios) for options in every]
    total, done = sum(map(len, points)), 0
    curves: list[Curve] = []
    left: dict[str, str] = {}
    for found in points:
        damages: dict[float, float] = {}
        for removed, units in found.items():
            try:
                damages[removed] = damage(pruner.graph.draft(chooser.kept(units)))
            except RehearsalError as error:
                left.update(dict.fromkeys(units, f"the program can't express some of its cuts alone: {error.where}"))
            done += 1
            if progress is not None:
                progress(done, total)
        if damages:
            curves.append(Curve(tuple(next(iter(found.values()))), tuple(damages), tuple(damages.values())))
    sizes = {group: known.size for group, known in pruner.graph.analysis.groups.items()}
    return Sensitivity(tuple(curves), name, sizes, examples, left)


def _learnt(pruner: Pruner) -> tuple[Chooser, list[Options]]:
    """Lets rehearsals of unlike cuts of everything find the sizes that the program computes from each other."""
    scores = pruner.scores(pruner.scopes())
    knowledge = pruner.graph.knowledge
    while True:  # ends, because every further round knows more ties, more multiples or more groups that can't shrink
        known = knowledge.limits
        scopes = pruner.scopes()
        chooser = pruner.chooser({name: scores[name] for s in scopes for name in s.groups if name in scores})
        every = free_options(chooser, scopes)
        units: dict[str, int] = {}
        for place, options in enumerate(every):
            units.update(options[round((len(options) - 1) * (0.25 + 0.25 * (place * _GOLDEN % 1)))])
        pruner.draft_counts(chooser, units)
        if knowledge.limits == known:
            return chooser, every


def _points(options: Options, ratios: Sequence[float]) -> dict[float, Mapping[str, int]]:
    """The options nearest to some fractions, by the fraction that really goes."""
    group, size = next(iter(options[0].items()))
    found = {}
    for ratio in ratios:
        nearest = min(options[1:], key=lambda units: (abs(1 - units[group] / size - ratio), units[group]))
        found[1 - nearest[group] / size] = nearest
    return dict(sorted(found.items()))

"""Measuring sensitivity: every group is really cut on a copy of the model, alone, by several amounts."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit_core.choose.candidates import check_ratio
from prunekit_core.choose.chooser import Chooser
from prunekit_core.choose.criterion import Criterion
from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, RehearsalError
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.outputs import output_tensors
from prunekit_plugins.budgets.curves import Curve, Sensitivity
from prunekit_plugins.budgets.options import Options, free_options
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.pruner import BasePruner

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunekit_plugins.classic.options import StepOptions

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


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    batches: Iterable[Any] | Batches = (),
    *,
    metric: Metric | None = None,
    ratios: Sequence[float] = RATIOS,
    importance: Criterion | str = "magnitude",
    finish: Finish | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
    **options: Unpack[StepOptions],
) -> Sensitivity:
    """Measures what a model loses when the least important units of one group alone go.

    Every cut is made on a copy, as it would be made for good: norms run over what is left, sizes follow. The model
    isn't changed. Groups that the program keeps in step are cut together. It costs one run over the batches for each
    group and ratio, and the memory of one more copy.

    Args:
        model: The model.
        example_inputs: See `prune`.
        batches: Calibration batches; see `calibrate`. Not needed with a metric.
        metric: How good a model is, more is better: ``metric(model) -> float``; the damage is what it falls by. None:
            the damage is the squared error of the outputs relative to the squared outputs of the whole model.
        ratios: Fractions of a group that are removed, in (0, 1]; 1 stands for all that may go.
        importance: The criterion that says which units go, or its registered name.
        finish: Called as ``finish(copy, plan)`` on every cut copy before it is measured.
        cache: A file. If it holds a sensitivity of this model it is read, not measured; otherwise it is written.
        progress: Called after each measurement with the number of those done and their total.
        registry: Where plugins are found; None for the default registry.
        options: Further arguments of `BasePruner`: ``ignored_layers``, ``max_pruning_ratio``, ``forward_fn``, ...

    Returns:
        The sensitivity.

    Raises:
        ArgumentError: An argument is wrong, the metric gave no number, or the cache is of another model.
    """
    checked = _checked(ratios)
    pruner = BasePruner(model, example_inputs, importance, registry=registry, **options)
    if cache is not None and Path(cache).exists():
        known = Sensitivity.load(cache)
        known.check(pruner.graph.analysis)
        return known
    found = measure(pruner, batches, metric=metric, ratios=checked, finish=finish, progress=progress)
    if cache is not None:
        found.save(cache)
    return found


def _checked(ratios: Sequence[float]) -> tuple[float, ...]:
    checked = sorted({check_ratio(ratio, "a ratio", closed=True) for ratio in ratios} - {0.0})
    if not checked:
        raise ArgumentError("There are no ratios to measure.", hint="for example ratios=(0.25, 0.5, 0.75)")
    return tuple(checked)


def measure(
    pruner: Pruner,
    batches: Iterable[Any] | Batches = (),
    *,
    metric: Metric | None = None,
    ratios: Sequence[float] = RATIOS,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measures the sensitivity of the groups of a pruner that has not stepped; see `sensitivity`."""
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
    while True:  # ends, because every further round knows more ties or more groups that can't shrink
        known = list(knowledge.ties), list(knowledge.restored)
        scopes = pruner.scopes()
        chooser = pruner.chooser({name: scores[name] for s in scopes for name in s.groups if name in scores})
        every = free_options(chooser, scopes)
        units: dict[str, int] = {}
        for place, options in enumerate(every):
            units.update(options[round((len(options) - 1) * (0.25 + 0.25 * (place * _GOLDEN % 1)))])
        pruner.draft_counts(chooser, units)
        if (list(knowledge.ties), list(knowledge.restored)) == known:
            return chooser, every


def _points(options: Options, ratios: Sequence[float]) -> dict[float, Mapping[str, int]]:
    """The options nearest to some fractions, by the fraction that really goes."""
    group, size = next(iter(options[0].items()))
    found = {}
    for ratio in ratios:
        nearest = min(options[1:], key=lambda units: (abs(1 - units[group] / size - ratio), units[group]))
        found[1 - nearest[group] / size] = nearest
    return dict(sorted(found.items()))

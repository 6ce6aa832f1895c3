"""Sensitivity in one call: what a model loses when the least important units of one group alone go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from prunekit_core.arguments import check_keywords, keywords_of
from prunekit_core.choose.candidates import check_ratio
from prunekit_core.choose.criterion import Criterion
from prunekit_core.errors import ArgumentError
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.curves import Sensitivity
from prunekit_plugins.budgets.measuring import RATIOS, Finish, Metric, Progress, measure
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.classic.pruner import BasePruner
from prunekit_plugins.prune.settings import DEPTH_KEYWORDS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunekit_plugins.classic.options import StepOptions


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
    about_branches = (*DEPTH_KEYWORDS, "target", "calibration")
    check_keywords(options, (n for n in keywords_of(BasePruner) if n not in about_branches), "sensitivity")
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

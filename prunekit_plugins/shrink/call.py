"""The call: prune, train, prune, train, until a target is met."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_core.arguments import forms_checked
from prunekit_core.choose.schedule import Schedule
from prunekit_core.errors import ArgumentError
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.budgets.budget import Budget, Target, check_target
from prunekit_plugins.calibration import Batches
from prunekit_plugins.distill.objective import Objective, hidden_states
from prunekit_plugins.distill.randomness import own_randomness
from prunekit_plugins.distill.settings import Progress, check_one_process
from prunekit_plugins.distill.stored_logits import fingerprint_of
from prunekit_plugins.distill.stream import batches_of, first_of, generator_of
from prunekit_plugins.distill.student.trained import modes_kept
from prunekit_plugins.shrink.folder import Folder
from prunekit_plugins.shrink.path import CostPath, reachable
from prunekit_plugins.shrink.result import Shrinking
from prunekit_plugins.shrink.run import Data, Run, Student
from prunekit_plugins.shrink.settings import ShrinkSettings, shares

DEEP = 0.25
"""A target that leaves no more than this of a cost is reached in two cuts; above, a second one doesn't pay."""


@forms_checked
def shrink(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: Target,
    calibration: Iterable[Any] | Batches,
    train: Iterable[Any] | Batches,
    held_out: Iterable[Any] | Batches | None = None,
    steps: int | None = None,
    schedule: Schedule | str = "exponential",
    prune: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Shrinking:
    """Makes a smaller model in steps: each prunes, repairs the weights by data, and trains by distillation.

    The teacher of every step is the model that is passed in; it isn't changed.

    Args:
        model: The model.
        example_inputs: As for `prune`.
        target: What should be left at the end, as for `prune`: ``{"macs": 0.25}``.
        calibration: Batches for the cuts, see `calibrate`.
        train: Batches for the training, see `distill`.
        held_out: Batches that the best state of each training is chosen on, and that the losses of the protocol are of;
            None for those for calibration.
        steps: Number of cuts. None: two where the target leaves a quarter or less of a cost, else one.
        schedule: How the costs fall: a schedule or its registered name, applied to the part that goes.
            ``"exponential"`` takes the same part of what is left in every step.
        prune: Further arguments of `prune`, by name.
        distill: Further arguments of `distill`, by name. ``steps`` and ``epochs`` are of all trainings together, and
            shared out evenly; ``optimizer`` is a function of a list of parameters; a ``regularizer`` prepares the next
            cut, so that the last training goes without it.
        folder: Where the protocol and the model after each step are stored. If a call with the same arguments was
            stopped there, this one goes on, bit for bit as if it had never stopped. None stores nothing.
        seed: Of all that is random.
        progress: Called after each optimizer step with their number so far, and of all. None: a line with the time left
            on a terminal, nothing elsewhere.
        registry: Where plugins are found; None for the default registry.

    Returns:
        What was done, with the smaller model; print it. Where a loss wasn't finite, no further cut was made.

    Raises:
        ArgumentError: An argument is wrong, the target can't be reached or is met already, there are no batches, or
            they don't fit the model; told before anything is trained.
        CheckpointError: The folder holds something else, or another shrinking.
        PrunekitError: The model can't be pruned.
    """
    settings = ShrinkSettings(target, steps, schedule, prune or {}, distill or {}, folder, seed, progress)
    source, registry = _checked(model), registry or default_registry()
    check_target(target, registry)
    read = batches_of(calibration, "calibration")
    held = read if held_out is None else batches_of(held_out, "held_out")
    data = Data(example_inputs, read, batches_of(train, "train"), held)
    total = settings.training(held).total(data.training)
    with own_randomness([], generator_of(data.training)), own_randomness([], generator_of(data.calibration)):
        loss = _loss(source, data, settings, registry)
        budget = _budget(source, data, settings, registry)
        count = steps or cuts_for(budget)
        settings.check_steps(count)
        path = CostPath.of(budget, target, schedule, count)
        run = Run(source, data, settings, path, shares(total, count), registry)
        if folder is not None:
            run.stored_in(Folder(Path(folder)), settings.request(fingerprint_of(source), count, total))
        return run.made(loss)


def cuts_for(budget: Budget) -> int:
    """Returns the number of cuts where nobody says it: two for a deep cut, else one (``benchmarks/shrink.py``)."""
    left = min((budget.allowed[name] / dense for name, dense in budget.dense.items() if dense), default=1.0)
    return 2 if left <= DEEP else 1


def _checked(model: nn.Module) -> nn.Module:
    """Returns a model out of its wrappers.

    Raises:
        UnsupportedModelError: It is no module, or can't be analysed.
        ArgumentError: It isn't in memory, or lies on several processes.
    """
    source = check_recordable(model)
    check_one_process(model)
    empty = [name for name, parameter in source.named_parameters() if parameter.is_meta]
    if empty:
        raise ArgumentError(
            "The model has no weights.",
            where=empty[0],
            why="it is on the meta device, and it is the teacher",
            hint="pk.prune with weights=..., then pk.distill with stored logits",
        )
    return source


def _budget(source: nn.Module, data: Data, settings: ShrinkSettings, registry: Registry) -> Budget:
    """Finds out by a trial on a copy that the target can be reached."""
    trial = Student.of(source, settings.prune)
    return reachable(trial.model, data.example, settings.target, trial.arguments(), data.calibration, registry)


def _loss(source: nn.Module, data: Data, settings: ShrinkSettings, registry: Registry) -> float:
    """Runs the losses on the model itself, so that what doesn't fit is told first.

    Returns:
        The weighted loss on the held-out batches.
    """
    wanted = settings.training(data.held_out)
    device = next((parameter.device for parameter in source.parameters()), None)
    first_of(data.calibration, "calibration", device)
    first = first_of(data.training, "train", device)
    first_of(data.held_out, "held_out", device)
    objective = Objective.of(source, source, wanted, hidden_states(source, wanted, first, registry))
    assert wanted.plan == Plan()
    with modes_kept(source), torch.no_grad(), objective.at_work():
        source.eval()
        objective.on(first)
        return objective.first_mean(data.held_out.read(device))

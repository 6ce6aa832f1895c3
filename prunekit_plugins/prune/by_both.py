"""One target for depth and width together: what has to be saved is split in several ways, and the best one is taken."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
from torch import nn

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import OutOfReachError, Target
from prunekit_plugins.budgets.targets import plan_to_target
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.branch_runs import SeenBranch, rows_of
from prunekit_plugins.depth.choice import choices_on_the_way
from prunekit_plugins.depth.search import DepthChoice
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.steps import DepthSteps
from prunekit_plugins.importance.output_change import OutputChange
from prunekit_plugins.measure import evaluating
from prunekit_plugins.prune.allotment import Allotment
from prunekit_plugins.prune.by_depth import Decided
from prunekit_plugins.prune.calibrated import CalibratedPath

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Parts of the saving that depth makes; width makes the rest."""


@attrs.frozen(eq=False)
class _Split:
    """One way to meet a target.

    Attributes:
        share: The part of the saving that depth makes.
        choice: The branches that go.
        pruner: What chose the units.
        plan: What goes.
        change: How far outputs on held-out data are from those of the model.
    """

    share: float
    choice: DepthChoice
    pruner: Pruner
    plan: Plan
    change: float


def by_both(
    pruner: Pruner, settings: DepthSettings, target: Target, path: CalibratedPath | None, allotment: Allotment
) -> Decided:
    """Splits the saving that a target wants between branches and units, and takes the split that does least harm.

    Branches go in the order of damage per saved cost, until 0, 25, 50, 75 and 100 % of the saving is made; units of
    what is left make the rest, by the allocation. Each split is carried out on a copy and compensated, and what it
    returns is compared with what the model returns, on batches that decided nothing. The model itself is compensated
    with all of them.

    Args:
        pruner: The pruner of the analysed model; its criterion gets statistics.
        settings: What is asked for of branches.
        target: The target.
        path: What is done with calibration data.
        allotment: How units are chosen.

    Raises:
        ArgumentError: There are no calibration data, the weights are on disk, or no split meets the target.
    """
    if path is None or pruner.graph.current.stored is not None:
        raise ArgumentError(
            'by="both" measures what each split does to the outputs.',
            why="there are no calibration data" if path is None else "the weights are on disk, and copies are cut",
            hint='calibration=batches; or by="depth", by="width"' if path is None else 'by="depth" or by="width"',
        )
    fit, held = path.batches.held_out()
    trials = attrs.evolve(path, batches=fit)
    doubts = trials.inform(pruner)
    allotment = allotment.settled(pruner)
    splits, refused = _splits(pruner, settings, target, trials, allotment, _Judge(pruner.graph.model, held))
    if not splits:
        raise OutOfReachError(
            "The target can't be reached by depth and width.",
            why="; ".join(refused),
            hint="ask for more, or let more go: ignored_layers, max_pruning_ratio, keep_first and keep_last hold",
        )
    best = min(splits, key=lambda split: (split.change, len(split.plan.absent)))
    notes = [*doubts, *_notes(splits, refused, best)]
    if fit.source is held.source:
        notes.append("splits were compared on the data that decided: there is only one batch of calibration data")
    return Decided(best.pruner, best.plan, path, notes)


def _splits(
    pruner: Pruner,
    settings: DepthSettings,
    target: Target,
    path: CalibratedPath,
    allotment: Allotment,
    judge: _Judge,
) -> tuple[list[_Split], list[str]]:
    """Carries out the splits on copies.

    Returns:
        Those that meet the target, and why others don't.
    """
    graph, found, refused = pruner.graph, list[_Split](), list[str]()
    choices = choices_on_the_way(graph, settings, path.batches, target, SHARES)
    reached = {share for share, _ in choices}
    for share, choice in {one.absent: (share, one) for share, one in reversed(choices)}.values():
        steps = DepthSteps(graph, settings, path.batches)
        steps.choice = choice
        part = pruner.without(choice.plan, steps)
        try:
            plan = plan_to_target(part, target, select=allotment.selector(part, path))
        except OutOfReachError as error:
            refused.append(f"{_named(share)}: {error.why}")
            continue
        found.append(_Split(share, choice, part, plan, judge.change(_cut(part, plan, path))))
    refused += [f"{_named(share)}: branches that may go don't save so much" for share in SHARES if share not in reached]
    return found[::-1], refused


def _cut(pruner: Pruner, plan: Plan, path: CalibratedPath) -> nn.Module:
    """Returns a copy of the model as it will be: cut and compensated."""
    graph, small = pruner.graph, copy.deepcopy(pruner.graph.model)
    repaired = path.repair(graph, plan)
    values = {} if repaired is None else repaired.values
    with Transaction() as transaction:
        graph.step_to(plan).apply_within(transaction, small, registry=graph.registry, values=values)
    return small


def _named(share: float) -> str:
    return f"{share:.0%} of the saving by depth"


def _notes(splits: Sequence[_Split], refused: Sequence[str], best: _Split) -> list[str]:
    found = []
    for split in splits:
        taken = ", least of all: this split was taken" if split is best else ""
        many = f"{len(split.plan.absent)} branch{'' if len(split.plan.absent) == 1 else 'es'}"
        found.append(f"{_named(split.share)} ({many}): held-out outputs change by {split.change:.3g}{taken}")
    return [*found, *refused]


class _Judge:
    """Compares what copies of a model return with what the model returns.

    Args:
        model: The model.
        batches: What both are run on.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self._model, self._batches = model, batches
        devices = {parameter.device for parameter in model.parameters()}
        self._device = devices.pop() if len(devices) == 1 else None

    def change(self, small: nn.Module) -> float:
        """Returns the divergence of the logits in nats, or else the squared error relative to the outputs' squares.

        Raises:
            ArgumentError: The model returns no real numbers to compare.
        """
        seen = OutputChange("auto")
        with evaluating([self._model, small]):
            for batch in self._batches.read(self._device):
                run, args, kwargs = batch.example.runner, batch.example.args, batch.example.kwargs
                expected, found = (rows_of(run(model, args, kwargs), batch) for model in (self._model, small))
                alike = {name for name, rows in expected.items() if name in found and found[name].shape == rows.shape}
                seen.add(
                    SeenBranch(
                        outputs={name: rows for name, rows in found.items() if name in alike},
                        expected={name: rows for name, rows in expected.items() if name in alike},
                    )
                )
        change = seen.score()
        if change is None:
            raise ArgumentError("The model has no floating-point outputs to compare.")
        return change

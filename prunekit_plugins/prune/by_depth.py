"""Pruning by depth: branches go, and units of what stays where a ratio of them is asked for as well."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError, NothingToPruneError, first_reasons
from prunekit_core.groups.report import Report
from prunekit_core.plans.plan import Plan
from prunekit_plugins.depth.choice import DepthChoice, choose_branches
from prunekit_plugins.depth.settings import PLAIN, DepthSettings
from prunekit_plugins.prune.calibrated import CalibratedPath


@attrs.frozen(eq=False)
class DepthCut:
    """What was decided about branches.

    Attributes:
        choice: The branches.
        plan: The plan without them, with widths.
        notes: Lines for the report.
    """

    choice: DepthChoice
    plan: Plan
    notes: Sequence[str]

    @classmethod
    def decide(
        cls, pruner: Pruner, settings: DepthSettings, width_ratio: float, path: CalibratedPath | None
    ) -> DepthCut:
        """Chooses branches, then units; nothing is changed.

        Args:
            pruner: The pruner of the analysed model.
            settings: What is asked for of branches.
            width_ratio: Fraction of the units of every group to remove.
            path: What is done with calibration data; None without them.

        Raises:
            ArgumentError: An argument is wrong, the target can't be reached, or the weights are on disk.
            NothingToPruneError: No branch may go.
            RehearsalError: Branches that were named, or these units besides, can't go.
        """
        graph = pruner.graph
        if graph.current.stored is not None:
            raise ArgumentError(
                "Branches can't be taken out of a model on disk.",
                hint="load the model into memory: without weights=...",
            )
        choice = choose_branches(pruner, settings, None if path is None else path.batches)
        _require_branches(pruner, settings, choice)
        plan, notes = choice.plan, _notes(settings, path)
        if width_ratio > 0:
            kept = pruner.plan().kept
            plan = graph.plan_without(choice.absent, kept, keep_names=settings.keep_names)
            if not kept:
                reasons = [f"{name}: {why}" for name, why in pruner.report().left.items()]
                notes = (*notes, f"no units went, of which ratio={width_ratio:g} should: {first_reasons(reasons, 3)}")
        return cls(choice, plan, notes)

    def report(self, pruner: Pruner) -> Report:
        """Returns the report: groups that are gone with branches aren't among those that were left."""
        report, analysis = pruner.report(), pruner.graph.analysis
        gone = set(self.plan.gone)
        groups = {name: {member.parameter for member in group.members} for name, group in analysis.groups.items()}
        return attrs.evolve(
            report,
            left={name: why for name, why in report.left.items() if not groups[name] <= gone},
            pinned={dim: why for dim, why in report.pinned.items() if dim.rpartition("[")[0] not in gone},
            absent=self.choice.absent,
            branches=self.choice.left,
        )


def _notes(settings: DepthSettings, path: CalibratedPath | None) -> tuple[str, ...]:
    """Says how far scores can be trusted."""
    if path is None and not settings.branches and settings.branch_importance in (None, PLAIN):
        return ("branches were chosen by their weights alone, a weak guess: calibration=batches measures them",)
    return ()


def _require_branches(pruner: Pruner, settings: DepthSettings, choice: DepthChoice) -> None:
    """Raises `NothingToPruneError` where branches were asked for and none may go."""
    if choice.absent or settings.target is not None:
        return
    alike: dict[str, list[str]] = {}
    for name, why in choice.left.items():
        alike.setdefault(why, []).append(name)
    reasons = [f"{', '.join(names[:4])}{', ...' * (len(names) > 4)}: {why}" for why, names in alike.items()]
    raise NothingToPruneError(
        "No branch can go.",
        where=type(pruner.model).__name__,
        why=first_reasons(reasons) or "nothing is added to anything in the model that it could go on without",
        hint="prunekit inspect lists branches; ratio=0.5 removes units instead",
    )

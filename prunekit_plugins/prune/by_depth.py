"""Pruning by depth: branches go, and units of what stays where a ratio of them is asked for as well."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import first_reasons
from prunekit_core.plans.plan import Plan
from prunekit_plugins.depth.settings import PLAIN, DepthSettings
from prunekit_plugins.depth.steps import DepthSteps
from prunekit_plugins.prune.calibrated import CalibratedPath
from prunekit_plugins.prune.tradeoffs import Tradeoffs


@attrs.frozen(eq=False)
class Decided:
    """What goes.

    Attributes:
        pruner: The pruner that decided.
        plan: Its plan.
        path: What repairs weights that stay; None where they stay as they are.
        notes: Lines for the report.
        tradeoffs: What each part of the model could have saved, where damages were weighed against costs.
    """

    pruner: Pruner
    plan: Plan
    path: CalibratedPath | None = None
    notes: Sequence[str] = ()
    tradeoffs: Tradeoffs | None = None


def by_depth(pruner: Pruner, settings: DepthSettings, width_ratio: float, path: CalibratedPath | None) -> Decided:
    """Chooses branches, then units; nothing is changed.

    Args:
        pruner: The pruner of the analysed model; it gets what decides about branches.
        settings: What is asked for of branches.
        width_ratio: Fraction of the units of every group to remove.
        path: What is done with calibration data; None without them.

    Raises:
        ArgumentError: An argument is wrong, or the target can't be reached.
        NothingToPruneError: No branch may go.
        RehearsalError: Branches that were named, or these units besides, can't go.
    """
    pruner.branches = DepthSteps(pruner.graph, settings, None if path is None else path.batches)
    plan, notes = pruner.plan(), _notes(settings, path)
    if width_ratio > 0 and not plan.cuts:
        reasons = [f"{name}: {why}" for name, why in pruner.report().left.items()]
        notes = (*notes, f"no units went, of which ratio={width_ratio:g} should: {first_reasons(reasons, 3)}")
    return Decided(pruner, plan, path, notes)


def _notes(settings: DepthSettings, path: CalibratedPath | None) -> tuple[str, ...]:
    """Says how far scores can be trusted."""
    if path is None and not settings.branches and settings.branch_importance in (None, PLAIN):
        return ("branches were chosen by their weights alone, a weak guess: calibration=batches measures them",)
    return ()

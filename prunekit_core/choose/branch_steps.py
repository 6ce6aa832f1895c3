"""What decides which branches of a model a pruner takes out, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from prunekit_core.plans.plan import Plan


class BranchSteps(Protocol):
    """Decides which branches of the model of a graph go, step by step.

    Attributes:
        keep_names: Whether layers stay in their lists, so that all others keep their names; see `Graph.plan_without`.
        left: Name of each branch that stays to the reason, by the last decision.
    """

    @property
    def keep_names(self) -> bool:
        """Whether layers stay in their lists."""

    @property
    def left(self) -> Mapping[str, str]:
        """Name of each branch that stays to the reason."""

    def removal(self, step: int) -> Plan:
        """Decides which branches are gone after a step; nothing is changed.

        Args:
            step: The step, from 1.

        Returns:
            A proven plan, from the model as it was at analysis, without them and without those that are gone already,
            with all units of the rest. A plan without any branch that goes where there is none.

        Raises:
            ArgumentError: What was asked for can't be had.
            NothingToPruneError: It is the last step, and no branch may go.
        """

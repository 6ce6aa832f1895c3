"""Families of selections: everything that a search for a target may choose from, in one line from large to small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from prunekit_core.choose.candidates import Scope
from prunekit_core.choose.chooser import Chooser


class Family(Protocol):
    """Selections indexed by one strength. How a strength is found that meets a target is not its business."""

    def counts(self, strength: float) -> dict[str, int]:
        """Tells how many units each group keeps.

        Args:
            strength: From 0 (nothing goes) to just below 1 (as little stays as is possible). No group may keep more
                at a higher strength.

        Returns:
            Group to its number of units.
        """
        ...


class RatioFamily:
    """Every scope loses the same ratio of its units; scopes whose ratio was stated keep theirs.

    Args:
        chooser: Chooses the counts.
        scopes: The scopes.
    """

    def __init__(self, chooser: Chooser, scopes: Sequence[Scope]) -> None:
        self._chooser, self._scopes = chooser, tuple(scopes)

    def counts(self, strength: float) -> dict[str, int]:
        """Tells how many units each group keeps at a ratio."""
        scopes = [scope if scope.fixed else attrs.evolve(scope, ratio=strength) for scope in self._scopes]
        return self._chooser.counts(scopes).units

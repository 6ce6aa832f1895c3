"""What is asked for of branches: one value, checked as far as it can be without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import fields_from
from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.choose.candidates import check_ratio
from prunekit_core.choose.criterion import Criterion, criterion_of
from prunekit_core.errors import ArgumentError
from prunekit_core.modules.tree import Layer
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.budget import Target

WIDTH, DEPTH, BOTH = "width", "depth", "both"
"""What meets a target: units, branches, or both."""

CALIBRATED, PLAIN = "output_change", "magnitude"
"""The criteria for branches with calibration data, and without."""


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ArgumentError(
            "branches is a list of names of branches.", why=f"got {value!r}", hint="print(graph.branches()) lists them"
        )
    names = tuple(value)
    strange = next((name for name in names if not isinstance(name, str)), None)
    if strange is not None:
        kind = f"a module ({type(strange).__name__})" if isinstance(strange, nn.Module) else repr(strange)
        raise ArgumentError(
            "branches is a list of names of branches.",
            why=f"it has {kind}",
            hint='names are texts such as "layers.0.mlp": print(graph.branches()) lists them',
        )
    return names


@attrs.frozen(eq=False)
class DepthSettings:
    """Which branches go.

    Attributes:
        branch_ratio: Fraction of the branches that can be switched off to remove, in [0, 1).
        branches: Names of the branches to remove, instead of a ratio.
        target: What should be left, see `prune`; branches meet it where ``by`` is ``"depth"``.
        by: What meets a target: ``"width"`` (units), ``"depth"`` (branches) or ``"both"``.
        branch_importance: A criterion for branches or its registered name.
        keep_first, keep_last: So many branches stay at the start and at the end of the program.
        keep_names: Whether layers stay in their lists when all their branches go, so that all others keep their names.
        max_pruning_ratio: Largest fraction of branches that go.
        ignored_layers: Layers whose branches stay.
        global_pruning: Rank all branches together; else those of each structure lose the same fraction.
        uniform: Whether layers leave as a whole, so that those that stay are alike. Branches that are named go alone.

    Raises:
        ArgumentError: An argument is wrong.
    """

    branch_ratio: float | None = None
    branches: tuple[str, ...] | None = attrs.field(default=None, converter=_names)
    target: Target | None = None
    by: str = WIDTH
    branch_importance: Criterion | str | None = None
    keep_first: int = 0
    keep_last: int = 0
    keep_names: bool = False
    max_pruning_ratio: float = 1.0
    ignored_layers: tuple[Layer, ...] = ()
    global_pruning: bool = False
    uniform: bool = False

    def __attrs_post_init__(self) -> None:
        if self.branch_ratio is not None:
            check_ratio(self.branch_ratio, "branch_ratio", of="branches")
        for name in ("keep_first", "keep_last"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ArgumentError(f"{name} must be a number of branches.", why=f"got {value!r}", hint="0 or more")
        if self.by not in (WIDTH, DEPTH, BOTH):
            raise ArgumentError('by must be "width", "depth" or "both".', why=f"got {self.by!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.branch_ratio is not None and self.branches:
            raise ArgumentError("Give a branch_ratio or branches, not both.")
        if self.by != WIDTH and self.target is None:
            raise ArgumentError(
                f'by="{self.by}" needs a target.',
                why="it says what meets the target",
                hint="branch_ratio=0.25 removes a quarter of the branches",
            )
        if self.target is not None and (self.branch_ratio or self.branches):
            raise ArgumentError(
                "A target is met by units or by branches.",
                why="the search for it doesn't know what branches= or branch_ratio= takes besides",
                hint='by="depth" meets it by branches, by="both" by branches and units; or prune twice: first '
                "branches, then to the target",
            )
        wanted = self.requested or self.branch_ratio == 0
        about = ("branch_importance", "keep_first", "keep_last", "keep_names")
        given = [name for name in about if getattr(self, name)]
        if given and not wanted:
            raise ArgumentError(
                f"{given[0]} is about branches, and none is to go.",
                hint='branch_ratio=0.25, or by="depth" with a target',
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DepthSettings:
        """Makes the settings from keywords, by name."""
        fields = fields_from(cls, given)
        fields["ignored_layers"] = tuple(fields.get("ignored_layers") or ())
        return cls(**fields)

    @property
    def requested(self) -> bool:
        """Whether branches are to go."""
        return bool(self.branch_ratio) or bool(self.branches) or self.by != WIDTH

    @property
    def spares_units(self) -> bool:
        """Whether units stay by default: what is to go is said of branches, be it that none goes (a ratio of 0)."""
        said = self.branch_ratio is not None or self.branches is not None
        return self.by == DEPTH or (said and self.target is None)

    def criterion(self, registry: Registry, *, calibrated: bool) -> BranchCriterion:
        """Returns the criterion.

        Args:
            registry: Where it is found.
            calibrated: Whether there are calibration data.

        Raises:
            ArgumentError: There is none of that name, or it says nothing about branches.
        """
        wanted = self.branch_importance or (CALIBRATED if calibrated else PLAIN)
        found: object = criterion_of(wanted, registry)
        if not isinstance(found, BranchCriterion):
            known = [name for name, entry in registry.entries("prunekit_importance").items() if _scores(entry.value)]
            raise ArgumentError(
                "The criterion has nothing to say about branches.",
                where=wanted if isinstance(wanted, str) else type(found).__name__,
                why="it has no method branch(group)",
                hint=f"branch_importance={CALIBRATED!r}; these score branches: {', '.join(sorted(known))}",
            )
        return found


def _scores(registered: object) -> bool:
    return isinstance(registered, type) and issubclass(registered, BranchCriterion)

"""Units that can only leave together, and the parameter dims that hold them."""

from __future__ import annotations

import attrs

from prunekit_core.program.op_call import Kind, Role


@attrs.frozen
class Member:
    """A parameter (or buffer) dim that holds units of a group.

    Attributes:
        parameter: Canonical dotted name.
        dim: The dim of the parameter.
        role: What the parameter does with the units.
    """

    parameter: str
    dim: int
    role: Role

    @property
    def module(self) -> str:
        """Dotted path of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@attrs.frozen
class UnitGroup:
    """Units that can only leave together, and every parameter dim that holds them: a fact about the model, as data.

    A `Group` (what a user selects) is some units of one or several of these, bound to the modules of a model.

    Attributes:
        name: Stable name: the module that produces the units, with the kind where that isn't channels or neurons.
        size: Number of units at analysis.
        kind: What the units are.
        members: Every parameter dim that holds units, in order of the model's parameters.
        outer: Whether each unit contains units of other groups (heads hold head dims).
        mixes: Operations whose result depends on the number of units (``"aten::layer_norm in ln"``); empty: exact.
        least: How many units must stay, so that every operation has a value.
    """

    name: str
    size: int
    kind: Kind
    members: tuple[Member, ...]
    outer: bool
    mixes: tuple[str, ...]
    least: int = 1

    @property
    def inexact(self) -> tuple[str, ...]:
        """The operations for which a cut doesn't compute what the oracle does; empty: every cut is exact.

        Where experts left the oracle is the program that can't choose them, so what is left may depend on how many
        there are.
        """
        return () if self.kind in (Kind.EXPERTS, Kind.EXPERT_GROUPS) else self.mixes

    def producers(self) -> list[Member]:
        """Lists the members that produce the units."""
        return [member for member in self.members if member.role is Role.OUT]

"""Mixtures of a recorded program as values: where experts are chosen, weighted, and what their outputs become."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from prunekit_core.program.calls import tensors_of


@attrs.frozen
class Place:
    """One operation of a recorded program, to find it in a run.

    Attributes:
        module: Dotted path of the module that runs it.
        op: The operation.
        number: How often the module ran this operation before.
    """

    module: str
    op: object
    number: int

    @property
    def key(self) -> tuple[str, object]:
        """The module and the operation."""
        return self.module, self.op


@attrs.frozen(eq=False)
class Scores:
    """A tensor with one number for each expert.

    Attributes:
        place: The operation.
        argument: The argument of it that holds them; empty for what it returns.
        output: Which of the returned tensors holds them.
        dim: The dim of the experts.
        units: Tensor ``[units, positions]``, bool: which positions along the dim belong to a unit of the group.
    """

    place: Place
    argument: str
    output: int
    dim: int
    units: torch.Tensor


@attrs.frozen(eq=False)
class Reader:
    """Where something is read.

    Attributes:
        place: The operation.
        argument: The argument of it that this is.
    """

    place: Place
    argument: str


@attrs.frozen(eq=False)
class Gates:
    """The weights by which outputs of experts are multiplied.

    Attributes:
        place: The operation that returns them.
        output: Which of the returned tensors holds them.
        dense: Whether there is one for each expert; else one for each that was chosen.
    """

    place: Place
    output: int
    dense: bool


@attrs.frozen(eq=False)
class Choosing:
    """One operation that chooses experts of each token.

    Attributes:
        place: The operation.
        output: Which of the tensors that it returns holds their numbers: ``[tokens, count]``, or ``[tokens]``.
        listed: Whether that tensor has a dim for them, its last one; else it holds one for each token.
    """

    place: Place
    output: int
    listed: bool

    def numbers(self, result: object) -> torch.Tensor:
        """Returns the numbers of experts out of what the operation returned: tensor ``[tokens, count]``, int64."""
        found = tensors_of(result)[self.output]
        return found.reshape(-1, found.shape[-1] if self.listed else 1)


@attrs.frozen(eq=False)
class Mixture:
    """A router with its experts, in the program that was recorded.

    Attributes:
        group: Name of the group of its experts.
        scores: The scores that the router gives, and what is chosen from, in order.
        chosen: The operations that choose the experts of a token, in turn if they are several.
        unit_of: Tensor ``[experts]``, int64: the unit of the group that each expert belongs to.
        gates: Their weights; None where they can't be told from other tensors.
        output_reader: What reads what the mixture puts out, before anything else does: vectors along the last dim, of
            the tokens in the order of the choice.
        gradient_reader: What reads the same first when composite operations arrive in parts, as under autograd.
        stacks: Names of the parameters that hold the weights of the experts, but for the router's; of experts that are
            modules of a list those that ran; in the order in which the program last reads them.
    """

    group: str
    scores: tuple[Scores, ...]
    chosen: tuple[Choosing, ...]
    unit_of: torch.Tensor
    gates: Gates | None
    output_reader: Reader
    gradient_reader: Reader
    stacks: tuple[str, ...]

    @property
    def units(self) -> int:
        """Number of units of the group."""
        return len(self.scores[0].units)


@attrs.frozen(eq=False)
class MixturesFound:
    """The mixtures of a program.

    Attributes:
        mixtures: By the name of their group.
        counts: (module, operation) to how often the module ran it, where that doesn't depend on which experts run.
        missed: Group to why nothing is known about what its experts put out.
    """

    mixtures: Mapping[str, Mixture]
    counts: Mapping[tuple[str, object], int]
    missed: Mapping[str, str]

"""What criteria want to know from calibration data, and what of it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch

from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.graph.group import Group
from prunekit_core.plugins.blame import Blame
from prunekit_plugins.calibration.curvature import WIDEST
from prunekit_plugins.calibration.statistics import (
    COVARIANCES,
    CURVATURES,
    FISHER,
    GRADIENTS,
    MOMENTS,
    PARTS,
    Statistics,
)

LACKS = "it has needs but no attribute `statistics`, so that nobody gives it any"
SET_IT = "set it to None in the constructor"
ROOM = 2 << 30
"""Bytes that covariances and curvatures of all layers may take, if a criterion can do without them."""


@runtime_checkable
class NeedyCriterion(Protocol):
    """Something that states parts of statistics.

    Attributes:
        needs: The parts.
    """

    needs: Sequence[str]


@runtime_checkable
class StatisticalCriterion(Protocol):
    """A criterion that scores groups by statistics.

    Attributes:
        needs: The parts of `Statistics` that it reads.
        statistics: The statistics; None until they are set.
    """

    needs: Sequence[str]
    statistics: Statistics | None

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group; None when it has nothing to say."""


@runtime_checkable
class FrugalCriterion(StatisticalCriterion, Protocol):
    """A criterion that can do with less.

    Attributes:
        otherwise: The parts that it reads where the covariances that it would rather have don't fit into memory.
    """

    otherwise: Sequence[str]


@runtime_checkable
class DemandingCriterion(StatisticalCriterion, Protocol):
    """A criterion that does better with more.

    Attributes:
        wishes: Parts that it reads where they can be had.
    """

    wishes: Sequence[str]


@attrs.frozen
class Demand:
    """Which statistics are gathered.

    Attributes:
        parts: What has to be there.
        wishes: What is gathered as well where that can be done.
        widest: Outputs up to which curvatures are whole matrices, see `Curvatures`.
        notes: What the report says about it.
        curvature_notes: What it says if there are curvatures.
    """

    parts: Sequence[str] = (MOMENTS,)
    wishes: Sequence[str] = ()
    widest: int = WIDEST
    notes: tuple[str, ...] = ()
    curvature_notes: tuple[str, ...] = ()

    def has(self, *parts: str) -> bool:
        """Tells whether one of some parts is needed or wished for."""
        return not {*parts}.isdisjoint((*self.parts, *self.wishes))

    def __or__(self, other: Demand) -> Demand:
        """Returns what both ask for."""
        return Demand(
            tuple(dict.fromkeys((*self.parts, *other.parts))),
            tuple(dict.fromkeys((*self.wishes, *other.wishes))),
            min(self.widest, other.widest),
            (*self.notes, *other.notes),
            (*self.curvature_notes, *other.curvature_notes),
        )

    @classmethod
    def of(cls, criterion: StatisticalCriterion, sizes: Callable[[], Mapping[str, int]], blame: Blame) -> Demand:
        """Says what a criterion gets.

        Args:
            criterion: The criterion.
            sizes: Called for how many bytes each part takes if that matters.
            blame: Whose the criterion is.

        Raises:
            PluginError: It names parts that don't exist.
            ArgumentError: It names parts that need a loss.
        """
        for attribute in ("needs", "wishes", "otherwise"):
            check_parts(getattr(criterion, attribute, ()), attribute, blame)
        demand = cls(criterion.needs, criterion.wishes if isinstance(criterion, DemandingCriterion) else ())
        if not isinstance(criterion, FrugalCriterion) or COVARIANCES not in criterion.needs:
            return demand
        taken = sizes()
        if taken[COVARIANCES] > ROOM:
            size = _gib(taken[COVARIANCES])
            note = f"units are chosen by variances: covariances of what all layers read would take {size}"
            return cls(criterion.otherwise, notes=(note,))
        if CURVATURES in demand.wishes and taken[COVARIANCES] + taken[CURVATURES] > ROOM:
            size = _gib(taken[CURVATURES])
            note = f"of the curvatures only the diagonals are used: all of them would take {size}"
            return attrs.evolve(demand, widest=0, curvature_notes=(note,))
        return demand


def lacks_statistics(criterion: object) -> bool:
    """Tells whether a criterion names statistics and has no attribute that they could be put in."""
    return isinstance(criterion, NeedyCriterion) and not isinstance(criterion, StatisticalCriterion)


def check_parts(parts: object, attribute: str, blame: Blame) -> None:
    """Checks which parts of statistics a criterion names in one of its attributes.

    Raises:
        PluginError: They are no list of parts that exist.
        ArgumentError: They need a loss, of which a criterion can't say what it is.
    """
    headline = "A criterion names statistics that there aren't."
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise blame.error(headline, f"{attribute} is {parts!r}", hint=f'a list of names: {attribute} = ("moments",)')
    for part in parts:
        if part not in PARTS:
            raise blame.error(headline, f"{attribute} names {part!r}", hint=nearest(str(part), PARTS))
        if part in (GRADIENTS, FISHER):
            raise blame.error(
                "A criterion needs statistics of a loss.",
                f"{attribute} names {part!r}, and batches alone say nothing about the loss",
                hint=f"gather them first: criterion.statistics = calibrate(..., parts=[{part!r}], loss_fn=...)",
                kind=ArgumentError,
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

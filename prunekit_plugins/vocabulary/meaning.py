"""What the units of a declared axis are, in the words of messages."""

from __future__ import annotations

import enum

from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import NothingToPruneError


class Meaning(enum.Enum):
    """What the units are; the value is the plural."""

    IDS = "ids"
    CLASSES = "classes"
    POSITIONS = "positions"

    @property
    def one(self) -> str:
        """The singular."""
        return {Meaning.IDS: "id", Meaning.CLASSES: "class", Meaning.POSITIONS: "position"}[self]

    def refused(self, reason: Reason) -> NothingToPruneError:
        """Words that the program does something with the units by which none of them may leave."""
        where = " in ".join(part for part in (reason.operation, reason.module or "the model") if part)
        return NothingToPruneError(
            _REFUSED[self],
            where=where,
            why=reason.text if reason.output is None else f"{reason.text}: {reason.output}",
            hint="prune a part of the model without it, or take that out of the forward",
        )


_REFUSED = {
    Meaning.IDS: "Ids can't be renumbered in this program.",
    Meaning.CLASSES: "Classes can't leave this program.",
    Meaning.POSITIONS: "Positions can't leave this program.",
}

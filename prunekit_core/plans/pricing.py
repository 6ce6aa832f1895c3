"""The costs that a plan shows: computed when they are asked for, and numbers from then on."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from prunekit_core.algebra.layout import Kept
from prunekit_core.errors import PrunekitError

Costs = Mapping[str, tuple[float, float]]
"""Cost model to what the model costs before and after."""


@attrs.frozen
class Room:
    """What a parameter or buffer takes.

    Attributes:
        numbers: How many numbers it holds.
        itemsize: Bytes of each.
        buffer: Whether it is a buffer, which doesn't count as parameters.
    """

    numbers: int
    itemsize: int = 4
    buffer: bool = False

    @property
    def bytes(self) -> int:
        """Its bytes."""
        return self.numbers * self.itemsize


class Source(Protocol):
    """What knows what a model costs."""

    def costs(self, kept: Kept) -> Costs:
        """Returns what the model costs before a cut, and when only the kept units stay."""


class Prices:
    """The costs of one plan.

    Working them out takes a part of the time of an analysis, so it is left until somebody asks, or until what they are
    worked out from goes away, which this doesn't keep alive. Pickles and copies hold the numbers.

    Args:
        source: What they are worked out by; it calls `settle` with itself before it goes.
        kept: The kept units of the plan.
    """

    def __init__(self, source: Source, kept: Kept) -> None:
        self._source: weakref.ref[Source] | None = weakref.ref(source)
        self._kept: Kept | None = kept
        self._found: Costs | None = None
        self._fault: PrunekitError | None = None

    def settle(self, source: Source) -> None:
        """Works the costs out while that can be done; what is wrong with a cost model is told to whoever asks.

        Args:
            source: The source itself, which can't be reached from here any more where it goes as part of a cycle.
        """
        try:
            self._work_out(source)
        except PrunekitError as error:
            self._fault = error.with_traceback(None)

    def found(self) -> Costs:
        """Returns the costs.

        Raises:
            PluginError: A cost model is wrong.
        """
        if self._fault is not None:
            raise self._fault
        source = None if self._source is None else self._source()
        if source is not None:
            self._work_out(source)
        return self._found or {}

    def _work_out(self, source: Source) -> None:
        if self._found is None and self._kept is not None:
            self._found = source.costs(self._kept)
            self._source = self._kept = None

    def __getstate__(self) -> Costs:
        return dict(self.found())

    def __setstate__(self, found: Costs) -> None:
        self._source = self._kept = self._fault = None
        self._found = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Prices:
        return self

"""Lists of modules of which a program runs those whose numbers it read of a tensor: experts in a ``ModuleList``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from prunekit_core.record.listener import Listener
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Watched


def run_by_number(watched: Watched, batch: Batch) -> tuple[str, ...]:
    """Runs a batch and lists the paths of lists of modules whose entries run where their number was just read.

    What such modules read is picked out by values. A list counts where that is so of more of its entries than not: the
    program may know one of them by name as well.

    Args:
        watched: The model.
        batch: The batch.
    """
    listener = _NumberListener(watched.shadow.modules)
    watched.run_into(batch, listener)
    return listener.found()


class _NumberListener(Listener):
    """The listener that notes which entries of lists run where their number was the last that was read.

    Args:
        modules: The modules by path.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._sizes = {
            path: len(module) for path, module in modules.items() if isinstance(module, nn.ModuleList | nn.ModuleDict)
        }
        self._read: int | None = None
        self._entries: dict[str, tuple[set[str], set[str]]] = {}  # by list: those that follow their number, and others

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Notes a number, or the entries that an operation runs in."""
        if type(outputs) is int:
            self._read = outputs
            return
        within = list(self._within(module))
        follows = next((one for one in within if self._read is not None and _ends_with(one[1], self._read)), None)
        for one in within:
            path, entry = one
            self._entries.setdefault(path, (set(), set()))[one != follows].add(entry)

    def found(self) -> tuple[str, ...]:
        """Returns the paths of the lists that count."""
        known = self._entries.items()
        return tuple(path for path, (follow, others) in known if self._sizes[path] > 1 and len(follow) > len(others))

    def _within(self, path: str) -> Iterator[tuple[str, str]]:
        """Yields the lists around a module, innermost first, each with the name of the entry."""
        while path:
            path, _, entry = path.rpartition(".")
            if path in self._sizes:
                yield path, entry


def _ends_with(entry: str, number: int) -> bool:
    head = entry.removesuffix(str(number))
    return head != entry and not head[-1:].isdigit()

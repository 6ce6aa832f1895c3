"""Sums of rows that are picked out, as in a loop over experts: which branch is added where may change with the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch.utils.weak import WeakIdKeyDictionary

from prunekit_core.program.calls import tensors_of
from prunekit_core.program.examples import Example
from prunekit_core.program.rules import addition_of
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.branch_sums import SumPlaces, is_sum
from prunekit_plugins.calibration.observation import Seen, Watched
from prunekit_plugins.calibration.rows.following import RowsListener
from prunekit_plugins.calibration.rows.origins import Rows

_Key = tuple[str, Any]


class _SumRows(RowsListener):
    """The listener that notes what modules add, and where that was made.

    Attributes:
        picked: Modules and operations that add rows that were picked out.
        made: Module and operation to the modules that made what it adds, in order: the innermost ones within it.
    """

    def __init__(self, watched: Watched, batch: Batch) -> None:
        super().__init__(watched, batch, _ignore)
        self.picked: set[_Key] = set()
        self.made: dict[_Key, list[tuple[str, ...]]] = {}
        self._makers: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Notes a sum, and follows rows."""
        addition = addition_of(self.rules, op)
        if addition is not None and is_sum(arguments[addition.first], arguments[addition.second]):
            pair = [arguments[name] for name in (addition.first, addition.second)]
            if any(_is_picked(self.rows_of(one)) for one in pair):
                self.picked.add((module, op))
            self.made.setdefault((module, op), []).append(tuple(self._maker(one, module) for one in pair))
        makers = [self._maker(one, module) for one in tensors_of(list(arguments.values()))]
        maker = max((one for one in makers if one.startswith(module)), key=len, default=module)
        for tensor in tensors_of(outputs):
            self._makers[tensor] = maker
        super().operation(op, module, arguments, outputs)

    def _maker(self, tensor: Any, module: str) -> str:
        maker: str = self._makers.get(tensor, "")
        return maker if maker.startswith(f"{module}." if module else "") else module


def _is_picked(rows: Rows) -> bool:
    return rows.chosen or (rows.ids is not None and not rows.dims and rows.count > 1)


def picked_branches(watched: Watched, places: SumPlaces, batches: Iterable[Batch], recorded: Example) -> frozenset[str]:
    """Names the branches that are added where a module adds rows that are picked out, and not the same on all data.

    Args:
        watched: The model.
        places: Where branches are added.
        batches: The batches.
        recorded: The example that branches were found with.
    """
    found: set[_Key] = set()
    first: Mapping[_Key, list[tuple[str, ...]]] | None = None
    for batch in batches:
        if first is None:
            first = _seen(watched, attrs.evolve(batch, example=_moved(recorded, watched))).made
        listener = _seen(watched, batch)
        found |= {key for key in listener.picked if listener.made[key] != first.get(key)}
    return frozenset(name for key in found for sums in places.places.get(key, ()) for name in sums.values())


def _moved(example: Example, watched: Watched) -> Example:
    """Returns an example where batches belong."""

    def move(value: torch.Tensor) -> torch.Tensor:
        return value if watched.device is None else value.to(watched.device)

    args, kwargs = pytree.tree_map_only(torch.Tensor, move, (example.args, example.kwargs))
    return attrs.evolve(example, args=args, kwargs=kwargs)


def _seen(watched: Watched, batch: Batch) -> _SumRows:
    listener = _SumRows(watched, batch)
    watched.run_into(batch, listener)
    return listener


def _ignore(seen: Seen, rows: Rows) -> None:
    """Looks at no consumer."""

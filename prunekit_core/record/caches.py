"""Tensors of a run that the user's program keeps for later, outside of its modules: caches are emptied of them.

A table that ``functools.lru_cache`` or a dict keeps is computed in the first run only. The next run would be another
program, and the user's model would meet tensors of a recording, which may have no data.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from prunekit_core.modules.closures import CACHE

DEPTH = 5
"""How far a cache may be from a tensor that it keeps: a tuple of tensors, an entry, a table."""
FEW = 64
"""Tensors that are followed at once; those that the same cache keeps go together."""


class Made:
    """Remembers what the operations of runs made, without keeping it alive."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[torch.Tensor]] = []
        self._known: dict[int, weakref.ref[torch.Tensor]] = {}  # an identity is used again once a tensor is gone

    def start(self, known: Iterable[Any]) -> None:
        """Forgets what was made, before a run on some tensors: parameters, buffers and inputs."""
        self.forget()
        self._known = {id(tensor): weakref.ref(tensor) for tensor in known if isinstance(tensor, torch.Tensor)}

    def add(self, result: Any) -> None:
        """Notes what an operation returned."""
        if isinstance(result, torch.Tensor):
            self._known[id(result)] = reference = weakref.ref(result)
            self._made.append(reference)
        elif isinstance(result, list | tuple):
            for item in result:
                if isinstance(item, torch.Tensor):
                    self.add(item)

    def passed(self, tensor: Any) -> Any:
        """Returns what an operation returned as it was given it; of a constant an alias, which a cache may keep."""
        if not isinstance(tensor, torch.Tensor):
            return tensor
        known = self._known.get(id(tensor))
        if known is not None and known() is tensor:
            return tensor
        alias = tensor.detach()
        self.add(alias)
        return alias

    def forget(self) -> None:
        """Forgets what was made."""
        self._made.clear()

    def release(self, used: Callable[[], Iterable[torch.Tensor]]) -> list[str]:
        """Empties caches of what was made since the last call, and forgets it.

        Call it when nothing of the kit's own holds tensors of the run any more.

        Args:
            used: Returns the tensors that the caller goes on to use; asked where any are left.

        Returns:
            A line for each place that isn't a cache and goes on to hold a tensor.
        """
        left = [ref for ref in self._made if ref() is not None]
        self.forget()
        places: list[str] = []
        if left:
            kept = {id(tensor) for tensor in used()}
            left = [ref for ref in left if id(ref()) not in kept]
        while left and not places:
            cleared = True
            while cleared:  # what lies behind a cache shows once that is empty
                cleared, places = _emptied([tensor for ref in left[:FEW] if (tensor := ref()) is not None])
            left = [ref for ref in left[FEW:] if ref() is not None]
        return places


def _emptied(tensors: list[torch.Tensor]) -> tuple[bool, list[str]]:
    """Follows tensors to what holds them; empties the nearest caches, and tells where else they are.

    Returns:
        Whether there were caches, and the other places.
    """
    seen: set[int] = set()
    cleared = False
    targets: list[Any] = list(tensors)
    places: dict[str, None] = {}
    for _ in range(DEPTH):
        seen |= {id(target) for target in targets} | {id(targets)}
        holders = [one for one in gc.get_referrers(*targets) if id(one) not in seen]
        holders = [one for one in holders if not isinstance(one, types.FrameType | weakref.ref)]
        caches = [one for one in holders if isinstance(one, CACHE)]
        for cache in caches:
            cache.cache_clear()
            cleared = True
        following: list[Any] = []
        wanted = {id(target) for target in targets}
        for holder in holders if not caches else ():
            if isinstance(holder, dict):
                around = gc.get_referrers(holder)
                owner = next((one for one in around if _has_attributes(one, holder)), None)
                kept = [key for key, value in holder.items() if id(value) in wanted]
                if any(isinstance(one, CACHE) for one in around):
                    following.append(holder)
                elif owner is None and _is_global(holder):
                    for key in kept:
                        del holder[key]
                elif owner is not None:
                    name = getattr(owner, "__name__", type(owner).__name__)
                    places.update((f"{name}.{key}", None) for key in kept)
                elif kept:
                    places["a dict"] = None
            elif isinstance(holder, list | tuple | set | frozenset) or type(holder).__module__ == "functools":
                following.append(holder)
            else:
                places[type(holder).__name__] = None
        if not following:
            break
        targets = following
    return cleared, list(places)


def _has_attributes(owner: Any, table: dict[Any, Any]) -> bool:
    """Tells whether a dict holds the attributes of an object, a module or a class."""
    return isinstance(owner, type) or getattr(owner, "__dict__", None) is table


def _is_global(table: dict[Any, Any], depth: int = 3) -> bool:
    """Tells whether a dict is a variable of a Python module or class, or lies in such a one: a table of a program's."""
    for one in gc.get_referrers(table):
        if isinstance(one, dict):
            owners = gc.get_referrers(one)
            if any(isinstance(owner, types.ModuleType | type) and _has_attributes(owner, one) for owner in owners):
                return True
            if depth and not any(_has_attributes(owner, one) for owner in owners) and _is_global(one, depth - 1):
                return True
    return False

"""What a forward of a shadow is given: the example inputs with other tensors, copied, so that the caller's stay as they
are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from prunekit_core.modules.attributes import attributes_of, slots_of
from prunekit_core.program.examples import Example
from prunekit_core.torch_private.trees import pytree

_AS_IS = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, nn.Module)


class RunInputs:
    """Copies of the inputs of one run.

    A tensor that is given twice is one stand-in, as attention layers ask whether query and key are the same. Objects
    (a cache, a graph, a batch of a class of its own) are deep-copied, with stand-ins for the tensors in them.

    Args:
        example: The inputs; they are not touched.
        stand_in: Makes the tensor that stands for one.
        known: Identity of objects of the model to those of the shadow.

    Attributes:
        args, kwargs: The copies.
        tensors: All stand-ins, in order.
        shared: Classes of objects that can't be copied, so that the caller's own are used, with the reason.
    """

    def __init__(
        self, example: Example, stand_in: Callable[[torch.Tensor], torch.Tensor], known: Mapping[int, Any]
    ) -> None:
        self.tensors: list[torch.Tensor] = []
        self.shared: dict[str, str] = {}
        self._memo, self._stand_in = dict(known), stand_in
        leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
        self.args, self.kwargs = pytree.tree_unflatten([self._copied(leaf) for leaf in leaves], spec)

    def _stands_for(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._memo:
            made = self._memo[id(tensor)] = self._stand_in(tensor).requires_grad_(tensor.requires_grad)
            self.tensors.append(made)
        return self._memo[id(tensor)]  # type: ignore[no-any-return]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._stands_for(value)
        if isinstance(value, _AS_IS) or callable(value):
            return self._memo.get(id(value), value)
        for tensor in _tensors_within(value, set()):
            self._stands_for(tensor)
        memo = dict(self._memo)
        try:
            made = copy.deepcopy(value, memo)
        except Exception as error:  # a class may refuse in any way
            self.shared[type(value).__name__] = f"{type(error).__name__}: {error}"
            return value
        self._memo.update(memo)
        return made


def _tensors_within(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, _AS_IS) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        items = [*dict.values(value)]
    elif isinstance(value, list | tuple | set | frozenset):
        items = [*value]
    else:
        items = []
    items.extend((attributes_of(value) or {}).values())
    items.extend(slot.__get__(value) for slot in slots_of(type(value)) if hasattr(value, slot.__name__))
    for item in items:
        yield from _tensors_within(item, seen)

"""Tensors without values: a forward runs on them, and every operation gets the values that it needs from elsewhere.

A valueless tensor has the shape, dtype and device of the real one. The values are read when an operation needs them
and are freed after it, unless the program goes on with a view of them. What is relied on in PyTorch:

- a ``FakeTensor`` tells the device that it stands for, and operations on it reach a dispatch mode first;
- a ``StorageWeakRef`` doesn't keep memory alive, and no other storage has its number while it exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from prunekit_core.torch_private.fake_tensors import FakeTensor, fake_mode
from prunekit_core.torch_private.memory import storage_number
from prunekit_core.torch_private.objects import count_as_parameter
from prunekit_core.torch_private.operators import arguments_of
from prunekit_core.torch_private.trees import pytree

Fill = Callable[[str], torch.Tensor]
"""Reads the values of a parameter or buffer by its canonical name: a tensor of its own memory."""


_TRIM = 64 * 2**20
"""Bytes that are read between two calls of glibc to give back what it holds."""


def device_for(model: nn.Module) -> torch.device:
    """Tells where tensors of a model that are on the meta device belong: where its others are, or torch's default."""
    tensors = [*model.parameters(), *model.buffers()]
    real = {tensor.device for tensor in tensors if not tensor.is_meta}
    return real.pop() if len(real) == 1 else torch.get_default_device()


class Valueless:
    """The valueless tensors of a model.

    Args:
        fill: Reads values.
        device: Where they are wanted.
    """

    def __init__(self, fill: Fill, device: torch.device) -> None:
        self._mode = fake_mode()
        self._fill, self.device = fill, device
        self._alive: dict[int, tuple[StorageWeakRef, str, torch.Size]] = {}
        # tensors of many sizes that come and go leave glibc's memory in pieces, which it keeps: half a gigabyte in
        # `benchmarks/large_calibration.py`, where 0.1 are needed; other allocators have no such function
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._read = 0

    def make(self, tensor: torch.Tensor, *, parameter: bool) -> torch.Tensor:
        """Makes the valueless tensor that stands for one on the meta device."""
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        valueless = FakeTensor(self._mode, meta, self.device)
        if parameter:
            count_as_parameter(valueless)
        return valueless

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is valueless."""
        return isinstance(tensor, FakeTensor)

    def read(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Reads the values of one of them, in its dtype and on its device."""
        self._read += like.nbytes
        if self._trim is not None and self._read > _TRIM:
            self._trim(0)
            self._read = 0
        with torch.inference_mode(False), torch.no_grad():  # an ordinary tensor, as a parameter is
            return self._fill(name).to(self.device, like.dtype)

    def settle(self, module: nn.Module, names: dict[int, str]) -> None:
        """Gives a module and all below it real tensors for good: what it does isn't seen.

        Args:
            module: A module of the shadow.
            names: Identity of every tensor to its name; those of the real ones are added.
        """
        for part in module.modules():
            tables: list[dict[str, Any]] = [part._parameters, part._buffers]
            for table in tables:
                for leaf, tensor in table.items():
                    if isinstance(tensor, FakeTensor):
                        values = self.read(names[id(tensor)], tensor)
                        if isinstance(tensor, nn.Parameter):
                            values = nn.Parameter(values, requires_grad=False)
                        table[leaf], names[id(values)] = values, names[id(tensor)]

    @contextlib.contextmanager
    def filled(
        self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], names: dict[int, str]
    ) -> Iterator[tuple[Any, Any]]:
        """Puts values into all valueless tensors among the arguments of an operation.

        Args:
            op: The operation.
            args, kwargs: Its arguments.
            names: Identity of every valueless tensor to its name; for the time of the operation, of the values as well.

        Yields:
            The arguments, with values.

        Raises:
            RuntimeError: It writes to one, which has nowhere to keep that.
        """
        if not any(isinstance(value, FakeTensor) for value in pytree.tree_leaves((args, kwargs))):
            yield args, kwargs
            return
        for argument, value in zip(arguments_of(op), args, strict=False):
            if isinstance(value, FakeTensor) and argument.alias_info is not None and argument.alias_info.is_write:
                raise RuntimeError(
                    f"{names.get(id(value), 'a tensor')} is written to by {op}, but its values are on disk"
                )
        wanted: dict[str, torch.Tensor] = {}
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, FakeTensor):
                if id(value) not in names:
                    raise RuntimeError("a tensor without values was made by an operation that isn't seen")
                wanted[names[id(value)]] = value
        with self.loaded(wanted, names) as loaded:
            yield pytree.tree_map_only(FakeTensor, lambda value: loaded[names[id(value)]], (tuple(args), dict(kwargs)))

    @contextlib.contextmanager
    def loaded(self, wanted: Mapping[str, torch.Tensor], names: dict[int, str]) -> Iterator[Mapping[str, torch.Tensor]]:
        """Reads values of some valueless tensors for one operation.

        Args:
            wanted: Name to the valueless tensor.
            names: Identity of every tensor to its name; for the time of the operation, of the values as well.

        Yields:
            Name to the values.
        """
        made: dict[str, torch.Tensor] = {}
        try:
            for name, valueless in wanted.items():
                made[name] = self.read(name, valueless)
                self._remember(made[name], name)
                names[id(made[name])] = name
            yield made
        finally:
            for values in made.values():
                names.pop(id(values), None)

    def _remember(self, values: torch.Tensor, name: str) -> None:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        store = StorageWeakRef(values.untyped_storage())
        self._alive[store.cdata] = (store, name, values.shape)

    def behind(self, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Finds what values a tensor is a view of: their name, and all of them; empty if it is of none."""
        if isinstance(tensor, FakeTensor):
            return {}
        store = tensor.untyped_storage()
        _, name, shape = self._alive.get(storage_number(store), (None, "", torch.Size()))
        if not name:
            return {}
        whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(store)
        return {name: whole[: shape.numel()].view(shape)}

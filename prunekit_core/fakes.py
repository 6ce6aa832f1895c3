"""Fake tensors, which have a shape, a dtype and a device but no data, made from meta tensors.

What is relied on: ``Tensor._make_subclass`` makes one, and its attributes follow from mode and device alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_Known = tuple[torch.device, dict[str, Any]]
"""The exact device of a fake tensor, and its attributes."""


class Fakes:
    """Makes the fake tensors of one mode.

    The constructor of `FakeTensor` takes more time than all the rest of an operation. What it sets is the same for all
    tensors of a device, so it is called once for each device, and copied from there: in versions of PyTorch where a
    copy is what the constructor makes.

    Args:
        mode: The mode.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[torch.device, _Known | None] = {}

    def make(self, meta: torch.Tensor, device: torch.device) -> FakeTensor:
        """Does what ``FakeTensor(mode, meta, device)`` does."""
        known = self._known.get(device)
        if known is not None:
            return self._copy(meta, *known)
        first = FakeTensor(self._mode, meta, device)
        if device not in self._known:
            self._known[device] = self._copiable(first, meta)
        return first

    def _copiable(self, first: FakeTensor, meta: torch.Tensor) -> _Known | None:
        """What copies of a fake tensor need; None where this version of PyTorch makes them otherwise."""
        known = (first.fake_device, dict(vars(first)))
        try:
            copy = self._copy(meta, *known)
        except (AttributeError, TypeError):
            return None
        same = (
            vars(copy) == vars(first)
            and copy.device == first.device
            and torch._C._dispatch_keys(copy) == torch._C._dispatch_keys(first)
        )
        return known if same else None

    def _copy(self, meta: torch.Tensor, exact: torch.device, attributes: dict[str, Any]) -> FakeTensor:
        fake = torch.Tensor._make_subclass(
            FakeTensor, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=exact
        )
        if self._mode._allow_unsafe_data_ptr_access:
            torch._C._set_warn_deprecated_on_mutable_data_ptr(fake)
        else:
            torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(attributes)
        return fake

    def wrap(self, result: Any, device: torch.device) -> Any:
        """Makes the meta tensors among the results of an operation fake ones."""
        if isinstance(result, FakeTensor):
            return result
        if isinstance(result, torch.Tensor):
            return self.make(result, device)
        if isinstance(result, tuple | list):
            return type(result)(self.wrap(item, device) for item in result)
        return result

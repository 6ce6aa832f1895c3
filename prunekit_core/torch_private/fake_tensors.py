"""Fake tensors, which have a shape, a dtype and a device but no data.

Relied on: ``Tensor._make_subclass`` makes one, and its attributes follow from mode and device alone; inside
``in_kernel_invocation_manager`` fake tensors are meta tensors, and so is what operations return; a mode's ``dispatch``
runs an operation on them. The constructor of the mode loads PyTorch's compiler for two of its settings: `fake_mode`
gives it these two instead, where the compiler isn't loaded.
"""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    in_kernel_invocation_manager,
)

from prunekit_core.torch_private.dispatch import uncompiled

__all__ = [
    "LOGGER",
    "VALUES_ARE_NEEDED",
    "FakeTensor",
    "FakeTensorMode",
    "UnsupportedFakeTensorException",
    "copy_of_fake",
    "fake_mode",
    "in_kernel_invocation_manager",
    "same_dispatch",
]

VALUES_ARE_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What operations on fake tensors raise for want of values."""
LOGGER = FakeTensorMode.__module__
"""The logger that says so."""


class _Mode(FakeTensorMode):
    """A fake mode that the compiler is kept out of only where it is loaded."""

    def __init__(self) -> None:
        if "torch._dynamo" in sys.modules:
            super().__init__(allow_non_fake_inputs=True)
        else:
            _LIGHT(self, allow_non_fake_inputs=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @uncompiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, types, args, kwargs or {})


class _Settings(types.SimpleNamespace):
    """Two settings of the compiler as they are unless somebody changes them; any other one loads it."""

    def __getattr__(self, name: str) -> Any:
        import torch._dynamo.config

        return getattr(torch._dynamo.config, name)


class _Torch:
    """Stands for ``torch`` in the constructor of a mode."""

    _dynamo = types.SimpleNamespace(
        config=_Settings(fake_tensor_cache_enabled=True, fake_tensor_cache_crosscheck_enabled=False)
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _without_compiler(function: Any) -> Any:
    """Returns a function with the same code, in which ``import torch._dynamo.config`` imports nothing."""
    stand_in = _Torch()

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch._dynamo.config":
            return stand_in
        found = builtins.__import__(name, *args, **kwargs)
        return stand_in if found is torch else found

    names = {**function.__globals__, "__builtins__": {**vars(builtins), "__import__": importing}}
    made = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


_LIGHT = _without_compiler(FakeTensorMode.__init__)


def fake_mode() -> FakeTensorMode:
    """Makes a mode under which operations compute shapes without data, real tensors among their arguments allowed."""
    return _Mode()


def copy_of_fake(
    mode: FakeTensorMode, meta: torch.Tensor, exact: torch.device, attributes: dict[str, Any]
) -> FakeTensor:
    """Makes a fake tensor as another one of the same mode and device was made.

    Args:
        mode: The mode.
        meta: A meta tensor of the shape and dtype.
        exact: The device, with its index.
        attributes: What the constructor gave the other one.
    """
    fake: FakeTensor = torch.Tensor._make_subclass(
        FakeTensor, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=exact
    )
    if mode._allow_unsafe_data_ptr_access:
        torch._C._set_warn_deprecated_on_mutable_data_ptr(fake)
    else:
        torch._C._set_throw_on_mutable_data_ptr(fake)
    vars(fake).update(attributes)
    return fake


def same_dispatch(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tells whether operations on two tensors go to the same kernels."""
    return bool(torch._C._dispatch_keys(first) == torch._C._dispatch_keys(second))

"""What is known of objects. Relied on: ``ScriptObject._type``, ``sys._getframe``, ``Tensor._is_param``, the hooks of
modules."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

import torch
from torch import nn


def script_class(value: torch.ScriptObject) -> str:
    """Returns the name of the class of an object of TorchScript's."""
    return str(value._type().name())  # type: ignore[attr-defined]


def caller() -> CodeType:
    """Returns the code that called the function which calls this."""
    return sys._getframe(2).f_code


def count_as_parameter(tensor: torch.Tensor) -> torch.Tensor:
    """Makes ``isinstance(tensor, nn.Parameter)`` true, without the detach of ``nn.Parameter``; returns the tensor."""
    tensor._is_param = True
    return tensor


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Returns the tables of what runs around a module's forward and backward: number of a hook to the hook."""
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Tells whether something was registered to run around a module's forward or backward."""
    return any(hooks_of(module))

"""Dispatch modes.

Relied on: ``TorchDispatchMode``; none is active inside of ``_disable_current_modes``; the compiler doesn't look into
frames of ``torch/_compile.py``.

PyTorch keeps its compiler from looking into modes, and loads it for that: a second of the first call, and a thousand
modules. Here it is kept out only where it is there already.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes as no_modes

no_dispatch = torch._C._DisableTorchDispatch
"""A context in which operations on tensors of subclasses don't reach Python."""

__all__ = ["Mode", "no_dispatch", "no_modes", "uncompiled"]

_COMPILER = "torch._dynamo"


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that the compiler is to leave alone, if it is loaded when the function is called."""
    kept: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        if compiler is None or not hasattr(compiler, "disable"):
            return function(*args, **kwargs)
        if not kept:
            kept.append(compiler.disable(function, recursive=True))
        return kept[0](*args, **kwargs)

    # the compiler passes over frames by their file, and has to pass over this one as over PyTorch's own wrapper
    passed_over: Any = called
    passed_over.__code__ = passed_over.__code__.replace(co_filename=torch._compile.__file__)
    return called


class Mode(TorchDispatchMode):
    """A dispatch mode whose subclasses decorate ``__torch_dispatch__`` with `uncompiled`."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Leaves out what the base class does: a decorator of ``__torch_dispatch__`` that loads the compiler."""

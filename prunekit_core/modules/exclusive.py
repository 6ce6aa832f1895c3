"""One thread at a time works on a model."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from torch import nn

from prunekit_core.errors import BusyModelError

P = ParamSpec("P")
T = TypeVar("T")

Owner = tuple[int, object]
"""A thread, and its statement."""

_owners: dict[int, Owner] = {}
"""Per ``id`` of a module that is worked on: who does. It is changed by operations that need no lock, which an exception
could leave locked."""
_readers: dict[tuple[int, object], int] = {}
"""Per ``id`` of a module that is analysed and statement that does: its thread."""


def _only_this_thread() -> None:
    for module, (thread, _) in list(_owners.items()):
        if thread != threading.get_ident():
            del _owners[module]
    for reader, thread in list(_readers.items()):
        if thread != threading.get_ident():
            del _readers[reader]


if hasattr(os, "register_at_fork"):  # in a child, the other threads don't exist
    os.register_at_fork(after_in_child=_only_this_thread)


@contextlib.contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Makes a thread the only one that works on a model until the end of a ``with`` statement.

    A model that is read by one thread while another one cuts it has shapes of both states, and two cuts that were
    decided on the same state don't fit each other. So the second thread is refused; it isn't made to wait, because the
    model that it was called with isn't there any more afterwards. Statements of one thread may be nested, and other
    models aren't concerned unless they share modules. What only reads a model says `shared`.

    Raises:
        BusyModelError: Another thread works on the model, or on a part of it.
    """
    owner = (threading.get_ident(), object())
    modules = list(model.modules())  # alive until the end, so that nothing else gets their ids
    try:
        for module in modules:
            if _owners.setdefault(id(module), owner)[0] != owner[0]:
                raise _busy(model)
        read = {module for (module, _), thread in list(_readers.items()) if thread != owner[0]}
        if read and any(id(module) in read for module in modules):
            raise _busy(model)
        yield
    finally:
        for module in modules:
            if _owners.get(id(module)) is owner:
                del _owners[id(module)]


@contextlib.contextmanager
def shared(model: nn.Module) -> Iterator[None]:
    """Makes sure that no other thread changes a model until the end of a ``with`` statement; others may read it.

    Raises:
        BusyModelError: Another thread works on the model, or on a part of it.
    """
    thread, statement = threading.get_ident(), object()
    modules = list(model.modules())
    try:
        for module in modules:
            _readers[id(module), statement] = thread
        if any(_owners.get(id(module), (thread, None))[0] != thread for module in modules):
            raise _busy(model)
        yield
    finally:
        for module in modules:
            _readers.pop((id(module), statement), None)


def _busy(model: nn.Module) -> BusyModelError:
    return BusyModelError(
        "Another thread works on the model.",
        where=type(model).__name__,
        why="no thread can prune, load or save a model that another one works on",
        hint="wait for the other thread, or give each thread a copy: copy.deepcopy(model)",
    )


def on_exclusive(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function of a model: while it runs, no other thread works on the model, see `exclusive`."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        model = args[0] if args else kwargs.get("model")
        with exclusive(model) if isinstance(model, nn.Module) else contextlib.nullcontext():
            return function(*args, **kwargs)

    return alone

"""Gradient checkpointing: what some modules compute is thrown away and computed again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.utils.checkpoint
from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.modules.tree import Layer, ModelTree


@contextlib.contextmanager
def recomputed(student: nn.Module, wanted: bool | Iterable[Layer], *, freeze_batchnorm: bool) -> Iterator[None]:
    """Trains with less memory and another forward per step, until the end of a ``with`` statement.

    Gradients are the same: dropout draws the same numbers again.

    Args:
        student: The student.
        wanted: True for the way that the model has itself (transformers'), or the modules (names or types) that are
            computed again, each on its own; of a ``ModuleList`` its members.
        freeze_batchnorm: Whether batch norms keep their statistics.

    Raises:
        ArgumentError: The model has no such way, there is no such module, or a batch norm in one would follow each
            batch twice.
    """
    if wanted is False:
        yield
        return
    if wanted is True:
        _check_norms([student], freeze_batchnorm)
        with _own_way(student):
            yield
        return
    assert not isinstance(wanted, bool)
    chosen = _members(student, wanted)
    _check_norms(chosen, freeze_batchnorm)
    with contextlib.ExitStack() as kept:
        for module in chosen:
            kept.enter_context(_wrapped(module))
        yield


@contextlib.contextmanager
def _own_way(student: nn.Module) -> Iterator[None]:
    enable: Any = getattr(student, "gradient_checkpointing_enable", None)
    if not callable(enable):
        raise ArgumentError(
            "The model has no gradient checkpointing of its own.",
            where=type(student).__name__,
            why="it has no method gradient_checkpointing_enable, which models of transformers have",
            hint='name the modules that are computed again: gradient_checkpointing=["blocks"]',
        )
    before = bool(getattr(student, "is_gradient_checkpointing", False))
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if not before:
            student.gradient_checkpointing_disable()  # type: ignore[operator]


def _members(student: nn.Module, wanted: Iterable[Layer]) -> list[nn.Module]:
    tree = ModelTree(student)
    inside = tree.paths_of(list(wanted))
    outermost = [path for path in sorted(inside) if not path or path.rpartition(".")[0] not in inside]
    named = [tree.modules[path] for path in outermost]
    lists = [list(module) if isinstance(module, nn.ModuleList) else [module] for module in named]
    return list(dict.fromkeys(module for part in lists for module in part))


def _check_norms(modules: Iterable[nn.Module], freeze_batchnorm: bool) -> None:
    if freeze_batchnorm:
        return
    inner = [(path, part) for module in modules for path, part in module.named_modules()]
    following = [path for path, part in inner if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if following:
        raise ArgumentError(
            "A batch norm that is computed again follows each batch twice.",
            where=following[0],
            hint="freeze_batchnorm=True, or name modules without batch norms in gradient_checkpointing",
        )


@contextlib.contextmanager
def _wrapped(module: nn.Module) -> Iterator[None]:
    forward: Callable[..., Any] = module.forward
    own = vars(module).get("forward")

    def again(*args: Any, **kwargs: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    module.forward = again
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own

"""What of a student is trained, and the modes that its modules are in meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.modules.tree import named_tensors
from prunekit_plugins.distill.student.adapters import LORA

ALL, NORMS = "all", "norms"
Filter = Callable[[str, nn.Parameter], bool]


def trained_parameters(student: nn.Module, train: Any) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by canonical name.

    Args:
        student: The student.
        train: ``"all"`` (those that ask for gradients now), ``"norms"`` (those of one dim: biases, and the weights of
            norms and scales), patterns of names, or a function of name and parameter.

    Raises:
        ArgumentError: It is none of these, or nothing is left to train.
    """
    every = {
        name: tensor
        for name, tensor in named_tensors(student).items()
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
    }
    chosen = _filter(train, every)
    found = {name: parameter for name, parameter in every.items() if chosen(name, parameter)}
    if not found:
        frozen = train == ALL and bool(every)
        raise ArgumentError(
            "There is nothing to train.",
            where=f"train={shown(train)}",
            why="no parameter of the student requires a gradient" if frozen else "",
            hint="student.requires_grad_(True)" if frozen else "",
        )
    return found


def _filter(train: Any, every: Iterable[str]) -> Filter:
    if train == ALL:
        return lambda name, parameter: parameter.requires_grad
    if train == NORMS:
        return lambda name, parameter: parameter.dim() < 2
    if isinstance(train, str) or (not callable(train) and not isinstance(train, list | tuple | set)):
        raise ArgumentError(
            'train is "all", "norms", "lora", a list of patterns of names, or a function.',
            why=f"got {shown(train)}",
            hint=nearest(train, (ALL, NORMS, LORA)) if isinstance(train, str) else 'for example ["head.*"]',
        )
    if callable(train):
        return lambda name, parameter: bool(train(name, parameter))
    patterns = list(train)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ArgumentError("No parameter has that name.", where=repr(pattern), hint=nearest(str(pattern), every))
    return lambda name, parameter: any(fnmatchcase(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def gradients_kept(student: nn.Module) -> Iterator[None]:
    """Puts back, at the end of a ``with`` statement, which parameters ask for gradients, and their ``.grad``."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in student.parameters()]
    try:
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag)
            parameter.grad = grad


def train_only(student: nn.Module, chosen: Iterable[torch.Tensor]) -> None:
    """Lets some parameters alone ask for gradients, and sets all gradients to None."""
    wanted = {id(tensor) for tensor in chosen}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
        parameter.grad = None


@contextlib.contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Puts the training flags of all modules back at the end of a ``with`` statement."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def set_training(student: nn.Module, *, freeze_batchnorm: bool) -> None:
    """Sets a student to train mode, its batch norms to eval mode if these keep their statistics."""
    student.train()
    if freeze_batchnorm:
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

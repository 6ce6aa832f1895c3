"""Watching a model run: hooks that see what layers read and give back, and that always go again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunekit.plugin import ArgumentError
from prunekit_plugins.importance.members import ATTENTION

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Total = Callable[[torch.Tensor], torch.Tensor]
"""Returns the sum of a tensor over all processes that train a model together; all of them have to call it."""
Key = TypeVar("Key")


def gathered_everywhere(keys: Sequence[Key], known: Collection[Key], total: Total, where: str) -> list[Key]:
    """Lists the keys about which something was gathered, on every process alike.

    Args:
        keys: All keys that there may be, in the same order on every process.
        known: Those about which this process gathered something.
        total: Adds up over processes.
        where: The criterion, for errors.

    Raises:
        ArgumentError: Some processes gathered something about a key, and others didn't.
    """
    counts = total(torch.tensor([1, *(int(key in known) for key in keys)], device="cpu")).tolist()
    if any(0 < count < counts[0] for count in counts[1:]):
        raise ArgumentError(
            "The processes gathered statistics of different layers.",
            where=where,
            hint="run the same layers on every process, and at least one batch on each",
        )
    return [key for key, count in zip(keys, counts[1:], strict=True) if count]


class Hooks:
    """Hooks on modules, kept together so that they can be removed together."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, act: Callable[..., Arguments | None]) -> None:
        """Calls ``act(module, args, kwargs)`` before a module runs."""
        self._handles.append(module.register_forward_pre_hook(act, with_kwargs=True))

    def after(self, module: nn.Module, act: Callable[..., None]) -> None:
        """Calls ``act(module, args, kwargs, output)`` after a module ran."""
        self._handles.append(module.register_forward_hook(act, with_kwargs=True))

    def remove(self) -> None:
        """Removes all hooks."""
        while self._handles:
            self._handles.pop().remove()


def read_tensors(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Finds the tensors that a layer's weights are applied to in a call.

    Args:
        module: A linear layer, a convolution or an attention module.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        Name of the argument to tensor: the first one, or query, key and value of an attention module.
    """
    names = ("query", "key", "value") if isinstance(module, ATTENTION) else ("input",)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: given[name] for name in names if isinstance(given.get(name), torch.Tensor)}


def weight_of(module: nn.Module, argument: str) -> torch.Tensor:
    """Returns the weight that a layer applies to one of the arguments that `read_tensors` finds."""
    name = "weight"
    if isinstance(module, ATTENTION):
        name = "in_proj_weight" if module.in_proj_weight is not None else f"{argument[0]}_proj_weight"
    weight = getattr(module, name)
    assert isinstance(weight, torch.Tensor)
    return weight


_SPACE = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def channel_dim(module: nn.Module, values: torch.Tensor) -> int:
    """Returns the dim of an input or output that a layer's units lie along: the last one, or that before the space."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return values.dim() - 1 - len(module.kernel_size)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        space = next(size for kind, size in _SPACE.items() if isinstance(module, kind))
        return values.dim() - 1 - space
    spread = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    return 1 if spread else values.dim() - 1

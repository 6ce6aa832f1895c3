"""Python functions of PyTorch that are seen, or run otherwise, while a forward runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prunekit_core.record.fakes import check_has_data
from prunekit_core.record.shared_memory import SharedMemory


class Exits(TorchFunctionMode):
    """Sees which tensors are turned into what isn't PyTorch's; fake ones, which hold nothing, can't be.

    Args:
        leaves: Called with each of them, and the name of the method.
        reads: Called with each tensor of one element that becomes a number of Python's by a method of its own, not as
            the index of another tensor.
        shared_memory: Memory of the model, of which only copies leave.
    """

    def __init__(
        self,
        leaves: Callable[[torch.Tensor, str], None],
        reads: Callable[[torch.Tensor], None],
        shared_memory: SharedMemory,
    ) -> None:
        super().__init__()
        self._leaves, self._reads, self._shared_memory = leaves, reads, shared_memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EXITS:
            check_has_data(args[0], _EXITS[func])
            self._leaves(args[0], _EXITS[func])
            args = (self._shared_memory.own(args[0]), *args[1:])
        elif func in _READS:
            self._reads(args[0])
        return func(*args, **(kwargs or {}))


_READS = {getattr(torch.Tensor, name) for name in ("item", "__int__", "__index__", "__float__", "__bool__")}
_EXITS = {getattr(torch.Tensor, name): name for name in ("numpy", "tolist", "__array__", "__dlpack__")}


class Unchecked(TorchFunctionMode):
    """Runs batch and instance norms without their check that there are several values to take statistics of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        if func is F.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    return torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, _cudnn())


def _instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    return torch.instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, _cudnn())


def _cudnn() -> bool:
    return bool(torch.backends.cudnn.enabled)

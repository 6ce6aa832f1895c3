"""How much memory one forward holds at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit_plugins.measure.latency import accelerator_of, runner


def peak_memory(model: nn.Module, inputs: Any) -> int:
    """Measures the bytes that weights, inputs and activations take at the worst moment of one forward in eval mode.

    On a CUDA device activations are what the allocator reports, with the scratch memory of kernels. Elsewhere the
    tensors that operations return are followed until nothing refers to their memory; what kernels use while they run is
    not in it.

    Args:
        model: The model; its modes are restored.
        inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            given = inputs if isinstance(inputs, Mapping | tuple | list) else (inputs,)
            leaves = pytree.tree_leaves(dict(given) if isinstance(given, Mapping) else given)
            follower = _Follower()
            follower.take([*model.parameters(), *model.buffers(), *leaves])
            device = accelerator_of([model])
            if device is not None and device.type == "cuda":
                return int(follower.most) + _beyond(device, runner(model, inputs))
            with follower:
                runner(model, inputs)()
            return int(follower.most)
    finally:
        for module, training in modes:
            module.training = training


def _beyond(device: torch.device, run: Callable[[], Any]) -> int:
    """The most bytes that a CUDA device's allocator held during a run, beyond those before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


class _Follower(TorchDispatchMode):
    """Adds up the memory of all tensors that operations return and that are still referred to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._users: dict[int, int] = {}
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.take(pytree.tree_leaves(result))
        return result

    def take(self, values: list[Any]) -> None:
        """Follows the tensors among some values from now on."""
        for tensor in values:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self._seen:
                storage = tensor.untyped_storage()
                place, size = storage._cdata, storage.nbytes()
                if not self._users.get(place):
                    self._now += size
                    self.most = max(self.most, self._now)
                self._users[place] = self._users.get(place, 0) + 1
                self._seen.add(id(tensor))
                weakref.finalize(tensor, self._gone, id(tensor), place, size)

    def _gone(self, identity: int, place: int, size: int) -> None:
        self._seen.discard(identity)
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self._now -= size

"""What crosses from the device to the host while a piece of code runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Crossings(TorchDispatchMode):
    """Counts the elements of tensors that operations copy from a device to the host.

    Attributes:
        elements: Elements copied, by operation.
        largest: The most that one operation copied.
        ran: How many operations read a tensor of a device at all.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: Counter[str] = Counter()
        self.largest = 0
        self.ran = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors(args, kwargs)
        if any(tensor.device.type not in ("cpu", "meta") for tensor in given):
            self.ran += 1
            here = [tensor for tensor in _tensors(result) if tensor.device.type == "never"]
            scalar = not _tensors(result) and "scalar" in str(func)
            moved = sum(tensor.numel() for tensor in here) + scalar
            if moved:
                self.elements[str(func)] += moved
                self.largest = max(self.largest, moved)
        return result


def _tensors(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]

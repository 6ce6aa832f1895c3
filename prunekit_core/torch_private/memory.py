"""Where a tensor lies. Relied on: ``torch._C._has_storage``, and the address ``_cdata`` of a storage."""

from __future__ import annotations

from typing import Any

import torch

has_storage = torch._C._has_storage
"""Tells whether a tensor has memory of its own kind; a sparse one has none."""


def storage_number(storage: Any) -> int:
    """Returns the number of a storage, or of a weak reference to one: no other has it while one of them is there."""
    return int(storage._cdata)


def memory_of(tensor: torch.Tensor) -> int:
    """Identifies the memory of a tensor that is alive: equal for a tensor and its views. A tensor without memory of
    its own (a sparse one) is like no other."""
    if not has_storage(tensor):
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)

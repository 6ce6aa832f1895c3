"""Parameters that transformers packs or turns, taken apart as engines want them: rows first, as in a ``Linear``."""

from __future__ import annotations

import torch

Parts = tuple[torch.Tensor, ...]


def whole(tensor: torch.Tensor, *about: object) -> Parts:
    """Leaves a parameter as it is."""
    return (tensor,)


def turned(tensor: torch.Tensor, *about: object) -> Parts:
    """Turns ``[experts, in, out]`` so that rows come first."""
    return (tensor.transpose(-1, -2),)


def halves(tensor: torch.Tensor, *about: object) -> Parts:
    """Cuts ``[..., 2 * out, in]`` in two: of a feed-forward its gate, and what it gates."""
    return tuple(tensor.chunk(2, dim=-2))


def every_other(tensor: torch.Tensor, *about: object) -> Parts:
    """Cuts ``[experts, in, 2 * out]``, or the bias without ``in``, in gates and what they gate, which take turns."""
    rows = tensor.transpose(1, 2) if tensor.dim() == 3 else tensor
    return rows[:, ::2], rows[:, 1::2]


def by_heads(tensor: torch.Tensor, heads: int, kv_heads: int) -> Parts:
    """Cuts ``[(heads + 2 * kv_heads) * head_dim, in]`` into queries, keys and values."""
    width = tensor.shape[0] // (heads + 2 * kv_heads)
    return tuple(tensor.split([heads * width, kv_heads * width, kv_heads * width]))

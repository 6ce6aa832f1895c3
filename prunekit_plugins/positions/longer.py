"""Example inputs with as many positions as stay: what a shorter table is rehearsed and compared on."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import attrs
import torch

from prunekit_core.program.examples import Example
from prunekit_core.torch_private.trees import pytree


def lengths_of(example: Example) -> set[int]:
    """Returns how many positions example inputs may have: the sizes of all dims but the batch."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return {leaf.shape[dim] for leaf in leaves if isinstance(leaf, torch.Tensor) for dim in _along(leaf)}


def _along(tensor: torch.Tensor) -> Iterator[int]:
    """Yields the dims that may be along positions."""
    return iter(range(min(1, tensor.ndim - 1), tensor.ndim) if tensor.ndim else ())


def longer(example: Example, lengths: Collection[int], length: int, counted: Collection[int]) -> Example:
    """Repeats example inputs along positions until they have a given number of them.

    Args:
        example: The inputs.
        lengths: How many positions they have: every dim of that size but the batch is one along positions.
        length: How many they shall have.
        counted: Which of the tensors among them, by their places, hold numbers of positions: these count on.
    """
    places = itertools.count()

    def one(tensor: torch.Tensor) -> torch.Tensor:
        counts = next(places) in counted
        for dim in [dim for dim in _along(tensor) if tensor.shape[dim] in lengths]:
            numbers = torch.arange(length, device=tensor.device)
            size, before = tensor.shape[dim], tensor
            tensor = before.index_select(dim, numbers % size)
            if counts and dim == before.ndim - 1:
                tensor = (tensor + (numbers // size) * size).clamp(max=length - 1).to(before.dtype)
        return tensor

    args, kwargs = pytree.tree_map_only(torch.Tensor, one, (example.args, example.kwargs))
    return attrs.evolve(example, args=args, kwargs=kwargs)

"""The oracle, which shares nothing with the library: what a pruned model lacks is zero in a copy of the original.

Which positions were kept is read off the values, all of which differ.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import nn


def kept_positions(old: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor] | None:
    """Finds the positions along each dim that a smaller tensor was cut from.

    Args:
        old: Tensor with distinct values.
        new: Tensor of as many dims.

    Returns:
        Positions per dim, ascending; None if it isn't made of the old one's values.
    """
    values, order = old.detach().flatten().sort()
    wanted = new.detach().flatten()
    at = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    if not torch.equal(values[at], wanted):
        return None
    places = torch.unravel_index(order[at], old.shape)
    found = []
    for place, size, left in zip(places, old.shape, new.shape, strict=True):
        positions = place.unique()
        if len(positions) != left:
            return None
        found.append(positions if left < size else torch.arange(size))
    rebuilt = old.detach()
    for dim, positions in enumerate(found):
        rebuilt = rebuilt.index_select(dim, positions)
    return found if torch.equal(rebuilt, new.detach()) else None


@dataclasses.dataclass
class Masked:
    """A copy of an original with zeros.

    Attributes:
        model: The copy.
        kept: Parameter name to its positions, where they could be read off.
        unread: Parameters whose values were changed as well, masked as the plan says.
    """

    model: nn.Module
    kept: dict[str, list[torch.Tensor]]
    unread: list[str]


def masked(original: nn.Module, pruned: nn.Module, positions: dict[str, dict[int, torch.Tensor]]) -> Masked:
    """Zeroes in a copy of the original what the pruned model lacks.

    Args:
        original: The model before.
        pruned: The model after.
        positions: What the plan says; used for parameters that were rescaled only.

    Returns:
        The copy.

    Raises:
        ValueError: A parameter has other values, and the plan doesn't mention it.
    """
    result = Masked(copy.deepcopy(original), {}, [])
    smaller = dict(pruned.named_parameters()) | dict(_bases(pruned))
    with torch.no_grad():
        for name, parameter in [*result.model.named_parameters(), *_bases(result.model)]:
            new = smaller.get(name)
            if new is None:
                raise ValueError(f"the pruned model has no parameter {name}")
            if new.shape == parameter.shape:
                continue
            found = kept_positions(parameter, new)
            if found is None:
                if name not in positions:
                    raise ValueError(f"{name} has other values, and the plan doesn't mention it")
                said = positions[name]
                found = [said.get(dim, torch.arange(size)) for dim, size in enumerate(parameter.shape)]
                result.unread.append(name)
            else:
                result.kept[name] = found
            for dim, (left, size) in enumerate(zip(found, parameter.shape, strict=True)):
                keep = torch.zeros(size, dtype=parameter.dtype)
                keep[left] = 1
                parameter.mul_(keep.view([-1 if d == dim else 1 for d in range(parameter.dim())]))
    return result


def leaves(value: Any) -> list[Any]:
    """Lists what lies in an output, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    if dataclasses.is_dataclass(value):
        return [leaf for field in dataclasses.fields(value) for leaf in leaves(getattr(value, field.name))]
    return [value]


def difference(expected: Any, found: Any) -> float:
    """Largest difference between two outputs, relative to the largest value of each tensor.

    Infinity where they have other shapes, numbers or values that aren't finite; NaN never equals anything.
    """
    one, other = leaves(expected), leaves(found)
    if len(one) != len(other):
        return math.inf
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if not isinstance(a, torch.Tensor):
            worst = worst if a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6)) else math.inf
            continue
        if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if not a.numel():
            continue
        if not a.is_floating_point() and not a.is_complex():
            worst = worst if torch.equal(a, b) else math.inf
            continue
        gap = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        worst = math.inf if math.isnan(gap) else max(worst, gap)
    return worst


def finite(value: Any) -> bool:
    """Tells whether all numbers in an output are finite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def _bases(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Lists the buffers that are weights: what parametrizations make a weight of, besides its parameters."""
    return [(name, b) for name, b in model.named_buffers() if ".parametrizations." in name and b.dim() == 2]

"""Parameters that no layer owns, as users list them: checked against what the recording found by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from prunekit_core.algebra.layout import groups_of
from prunekit_core.errors import ArgumentError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.tree import named_tensors

Unwrapped = Mapping[nn.Parameter, int] | Iterable[tuple[nn.Parameter, int]]
"""Parameters that no layer owns, with the dim that holds their units."""


def check_unwrapped(model: nn.Module, declared: Unwrapped) -> dict[str, int]:
    """Checks parameters that a user lists as owned by no layer.

    Returns:
        Canonical name to the dim.

    Raises:
        ArgumentError: A parameter isn't in the model, or has no such dim.
    """
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found = {}
    for parameter, dim in declared.items() if isinstance(declared, Mapping) else declared:
        name = names.get(id(parameter)) if isinstance(parameter, torch.Tensor) else None
        if name is None:
            raise ArgumentError(
                "An unwrapped parameter is not part of the model.", why=f"got {type(parameter).__name__}"
            )
        if not isinstance(dim, int) or not -parameter.dim() <= dim < parameter.dim():
            raise ArgumentError("An unwrapped parameter has no such dim.", where=name, why=f"dim {dim!r}")
        found[name] = dim % parameter.dim()
    return found


def unwrapped_notes(analysis: Analysis, declared: Mapping[str, int]) -> list[str]:
    """Says which of the declared parameter dims hold no units, and why."""
    notes = []
    for name, dim in declared.items():
        parameter = analysis.parameters[name]
        if not groups_of(parameter.dims[dim]):
            notes.append(f"unwrapped parameter {name}: dim {dim} can't shrink ({parameter.reasons[dim]})")
    return notes

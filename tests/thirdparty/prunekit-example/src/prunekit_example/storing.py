"""A form of weights on disk: what ``torch.save`` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from prunekit import Plan
from prunekit.plugin import select_positions


class StateDictFile:
    """The values of a model's tensors in a file, by their dotted names."""

    def __init__(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        self._values: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of a tensor."""
        return self._values[name].dtype

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names that a tensor has in the file."""
        return (name,)

    def read(self, name: str, plan: Plan) -> torch.Tensor:
        """Returns the values of a tensor as a plan cuts it, in memory of their own."""
        values = self._values[name]
        for cut in plan.parameters:
            if cut.parameter == name:
                values = select_positions(values, plan.positions(cut))
        return values.clone()


def write(path: str | os.PathLike[str], state: Mapping[str, torch.Tensor]) -> None:
    """Writes a state dict in this form."""
    torch.save(dict(state), path)

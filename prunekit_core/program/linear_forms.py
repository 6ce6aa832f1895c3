"""Consumers: operations that multiply what they read by a parameter, and where that parameter's numbers lie.

Every linear layer, matrix product and convolution is, for each of its groups, ``y = W x + b`` once the columns that a
kernel covers are written side by side. What an operation reads and how its columns are found is said by its rule
(`OpRule.reads`); the core knows the form only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

Arguments = Mapping[str, Any]
Features = Callable[[torch.Tensor, Arguments], torch.Tensor]


@attrs.frozen(eq=False)
class Reading:
    """How an operation reads: ``y = W x + b`` for each group of its weight.

    Attributes:
        source: Name of the argument that is read.
        weight: Name of the argument that it is multiplied by.
        bias: Name of the argument that is added; empty where the operation has none.
        features: Source and all arguments to the columns: tensor ``[groups, samples, features]``. The features of a
            convolution are its input channels of one group times the places of its kernel, row-major.
        outputs: Output and all arguments to ``[groups, samples, outputs]``, samples in the same order.
        groups: Arguments to the number of groups; 0 where a call is not of this form.
        inputs_first: Whether the weight is ``[inputs, outputs / groups, ...]`` and not the other way round.
        channels_last: Whether a sample is one position of all dims but the last, so that padding can be left out.
    """

    source: str
    weight: str
    bias: str
    features: Features
    outputs: Features
    groups: Callable[[Arguments], int]
    inputs_first: bool
    channels_last: bool


@attrs.frozen
class Centring:
    """How an operation subtracts a mean that is kept in a buffer, outside of training.

    Attributes:
        source: Name of the argument that it is subtracted from.
        mean: Name of the argument that holds it.
        switch: Name of the argument that is true in training.
    """

    source: str
    mean: str
    switch: str


@attrs.frozen
class Addition:
    """How an operation adds two tensors.

    Attributes:
        first, second: Names of the arguments that are added.
        factor: Name of the argument that the second one is multiplied by, where it isn't one.
        branches: Whether an operand may be switched off; False where zero means something else to the operation.
    """

    first: str
    second: str
    factor: str
    branches: bool = True


@attrs.frozen
class Site:
    """The (part of a) parameter that a consumer multiplies by, as a matrix ``[groups, outputs, features]``.

    Attributes:
        parameter: Canonical dotted name.
        shape: Shape of the whole parameter.
        rows: The run ``(start, stop)`` of dim 0 that is used: all of it, or a part of a packed projection.
        groups: Number of groups.
        inputs_first: Whether dim 0 is about inputs; otherwise about outputs.
    """

    parameter: str
    shape: tuple[int, ...]
    rows: tuple[int, int]
    groups: int
    inputs_first: bool

    @property
    def name(self) -> str:
        """The name of the parameter, with the run where it is a part."""
        start, stop = self.rows
        return self.parameter if (start, stop) == (0, self.shape[0]) else f"{self.parameter}[{start}:{stop}]"

    def matrix(self, whole: torch.Tensor) -> torch.Tensor:
        """Returns the matrix ``[groups, outputs, features]`` out of the parameter, or of a tensor of its shape."""
        part = whole[self.rows[0] : self.rows[1]]
        blocks = part.reshape(self.groups, part.shape[0] // self.groups, part.shape[1], -1)
        if self.inputs_first:
            blocks = blocks.transpose(1, 2)
        return blocks.flatten(2)

    def placed(self, matrix: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Returns a copy of the parameter with this matrix in it; what other sites use stays."""
        result = whole.detach().clone()
        part = result[self.rows[0] : self.rows[1]]
        first, second = part.shape[0] // self.groups, part.shape[1]
        if self.inputs_first:
            blocks = matrix.reshape(self.groups, second, first, -1).transpose(1, 2)
        else:
            blocks = matrix.reshape(self.groups, first, second, -1)
        part.copy_(blocks.reshape(part.shape).to(part))
        return result

    def positions(self, dim: int) -> torch.Tensor:
        """Tells which position of a parameter dim every feature belongs to.

        Args:
            dim: The parameter dim that is about inputs.

        Returns:
            Tensor ``[groups, features]``, int64, on the CPU.
        """
        return self._places(dim)[:, 0, :]

    def channels(self, dim: int) -> torch.Tensor:
        """Tells which position of a parameter dim every output belongs to.

        Args:
            dim: The parameter dim that is about outputs.

        Returns:
            Tensor ``[groups, outputs]``, int64, on the CPU.
        """
        return self._places(dim)[:, :, 0]

    def _places(self, dim: int) -> torch.Tensor:
        """The matrix of the positions along a parameter dim."""
        sizes = [1] * len(self.shape)
        sizes[dim] = self.shape[dim]
        return self.matrix(torch.arange(self.shape[dim], device="cpu").reshape(sizes).expand(self.shape))

    def along(self, values: torch.Tensor, dim: int) -> torch.Tensor:
        """Adds up values of features by the position of a parameter dim that each belongs to.

        Args:
            values: Tensor ``[groups, features]``.
            dim: The parameter dim that is about inputs.

        Returns:
            Tensor ``[shape[dim]]``.
        """
        positions = self.positions(dim).to(values.device)
        return values.new_zeros(self.shape[dim]).index_add_(0, positions.flatten(), values.flatten())


def find_site(
    weight: torch.Tensor,
    names: Mapping[int, str],
    parameters: Mapping[str, torch.Tensor],
    reading: Reading,
    groups: int,
) -> Site | None:
    """Finds the parameter whose numbers an operation multiplies by: itself, a run of its rows, or transposed.

    Args:
        weight: What the operation was given.
        names: Identity of parameters to their canonical names.
        parameters: The parameters by name.
        reading: How the operation reads.
        groups: Number of groups.

    Returns:
        The site; None where the weight is no plain view of a parameter.
    """
    name = names.get(id(weight))
    if name is not None:
        return Site(name, tuple(weight.shape), (0, weight.shape[0]), groups, reading.inputs_first)
    store = weight.untyped_storage().data_ptr()
    for name, parameter in parameters.items():
        if parameter.dim() < 2 or parameter.untyped_storage().data_ptr() != store:
            continue
        for turned in (False, True):
            if turned and (weight.dim() != 2 or parameter.dim() != 2):
                continue
            view = weight.t() if turned else weight
            if view.stride() != parameter.stride() or view.shape[1:] != parameter.shape[1:]:
                continue
            start, rest = divmod(int(view.storage_offset()) - int(parameter.storage_offset()), parameter.stride(0))
            if rest or start < 0 or start + view.shape[0] > parameter.shape[0]:
                continue
            return Site(
                name,
                tuple(parameter.shape),
                (start, start + view.shape[0]),
                groups,
                reading.inputs_first != turned,
            )
    return None

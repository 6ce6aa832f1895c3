"""Symmetric matrices of which little more than half is kept: those of all layers are larger than the model."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

ROWS = 128
"""Rows of a block."""


@attrs.frozen(eq=False)
class Symmetric:
    """A symmetric matrix for each group, ``[groups, width, width]``: blocks of rows, each up to its last column.

    Attributes:
        blocks: Tensors ``[groups, rows, columns]``.
    """

    blocks: list[torch.Tensor]

    @classmethod
    def zeros(cls, groups: int, width: int, dtype: torch.dtype, device: torch.device) -> Symmetric:
        """Returns matrices of zeros."""
        return cls(
            [torch.zeros(groups, stop - start, stop, dtype=dtype, device=device) for start, stop in _places(width)]
        )

    @classmethod
    def of(cls, whole: torch.Tensor, dtype: torch.dtype) -> Symmetric:
        """Takes them out of a tensor ``[groups, width, width]``."""
        places = _places(whole.shape[2])
        return cls([whole[:, start:stop, :stop].to(dtype, copy=True) for start, stop in places])

    @property
    def width(self) -> int:
        """Number of rows of a matrix."""
        return self.blocks[-1].shape[2]

    @property
    def diagonal(self) -> torch.Tensor:
        """Tensor ``[groups, width]``."""
        return torch.cat([part.diagonal(part.shape[2] - part.shape[1], 1, 2) for part in self.blocks], 1)

    def copy(self) -> Symmetric:
        """Returns the same in memory of its own."""
        return Symmetric([block.clone() for block in self.blocks])

    def add_product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds ``left @ right``, which is symmetric; without a copy where it is of the dtype of these.

        Args:
            left: Tensor ``[groups, width, rank]``.
            right: Tensor ``[groups, rank, width]``.
        """
        for block, (start, stop) in zip(self.blocks, _places(self.width), strict=True):
            one, other = left[:, start:stop], right[:, :, :stop]
            if block.dtype != left.dtype:
                block.add_(torch.matmul(one, other))
            elif len(block) == 1:
                block[0].addmm_(one[0], other[0])
            else:
                block.baddbmm_(one, other)

    def times(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the product with a tensor ``[groups, width, columns]``, in its dtype."""
        found = torch.zeros_like(values)
        for block, (start, stop) in zip(self.blocks, _places(self.width), strict=True):
            part = block.to(values.dtype)
            found[:, start:stop] += part @ values[:, :stop]
            found[:, :start] += part[:, :, :start].transpose(1, 2) @ values[:, start:stop]
        return found

    def multiply(self, factors: torch.Tensor) -> None:
        """Multiplies each matrix by one of ``[groups]`` factors."""
        for block in self.blocks:
            block.mul_(factors.to(block.dtype)[:, None, None])

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns them as a tensor ``[groups, width, width]`` of its own memory."""
        return Symmetric([*self.blocks]).spent(dtype)

    def spent(self, dtype: torch.dtype) -> torch.Tensor:
        """Does what `whole` does and lets go of each block once it is copied, where there is no room for both."""
        groups, width = self.blocks[0].shape[0], self.width
        found = torch.empty(groups, width, width, dtype=dtype, device=self.blocks[0].device)
        for start, stop in _places(width):
            block = self.blocks.pop(0)
            found[:, start:stop, :stop] = block
            found[:, :start, start:stop] = block[:, :, :start].transpose(1, 2)
        return found

    def equals(self, other: Symmetric) -> bool:
        """Whether both are the same."""
        pairs = zip(self.blocks, other.blocks, strict=False)
        return self.width == other.width and all(torch.equal(one, two) for one, two in pairs)


def _places(width: int) -> Iterator[tuple[int, int]]:
    """Yields the first row of each block, and the one after its last."""
    for start in range(0, width, ROWS):
        yield start, min(start + ROWS, width)

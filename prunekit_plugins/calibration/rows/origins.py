"""Where the rows of a tensor come from, as a value: a token that was picked out of a batch is known again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch


@attrs.frozen(eq=False)
class Rows:
    """Which rows a tensor holds.

    The rows of a tensor are numbered along its first dims. They are divided only as far as a program picks among them:
    that of an ordinary tensor is one row, number 0 of 1, with all examples and tokens in it.

    Attributes:
        ids: Tensor, int64, of the shape that the tensor's shape begins with: the number of each row. Negative where
            there is none (what was left empty). None where they can't be told.
        count: How many rows there are where they come from; how many there are in all where they can't be told.
        chosen: Whether values decide which rows these are.
    """

    ids: torch.Tensor | None
    count: int = 1
    chosen: bool = False

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> Rows:
        """Returns those of a tensor of which nothing was picked."""
        return cls(torch.zeros((), dtype=torch.int64, device=tensor.device))

    @property
    def known(self) -> torch.Tensor:
        """The numbers of rows that can be told."""
        assert self.ids is not None
        return self.ids

    @property
    def dims(self) -> int:
        """The number of dims that rows lie along."""
        return self.known.dim()

    def divided(self, shape: Sequence[int], dims: int) -> Rows:
        """Numbers the rows along more dims.

        Args:
            shape: The shape of the tensor.
            dims: Along how many of its first dims.
        """
        if self.ids is None or self.ids.dim() >= dims:
            return self
        rest = tuple(shape[self.ids.dim() : dims])
        size = math.prod(rest)
        inner = torch.arange(size, device=self.ids.device).reshape(rest)
        ids = self.ids.reshape(*self.ids.shape, *(1 for _ in rest)) * size + inner
        return Rows(ids, self.count * size, self.chosen)

    def of(self, ids: torch.Tensor | None, *, chosen: bool = False) -> Rows:
        """Returns some of these rows.

        Args:
            ids: Their numbers; None where these can't be told.
            chosen: Whether values decide which they are.
        """
        return Rows(ids, self.count, self.chosen or chosen)

    def begins(self, shape: Sequence[int]) -> bool:
        """Tells whether a tensor of some shape may have these rows."""
        return self.ids is not None and tuple(shape[: self.ids.dim()]) == tuple(self.ids.shape)

    def first_of(self, shape: Sequence[int]) -> Rows | None:
        """Returns the rows of what was reduced to some shape, or None: of those that are put together, the first."""
        common = 0
        for size, other in zip(self.known.shape, shape, strict=False):
            if size != other:
                break
            common += 1
        if not common:
            return None
        return self.of(self.known.reshape(*self.known.shape[:common], -1)[..., 0]) if self.known.numel() else None

    def equals(self, other: Rows) -> bool:
        """Tells whether these are the same rows in the same order, whatever values are.

        Rows that can't be told are taken for the same unless values have a part in them, or there are more or fewer.
        """
        if self.chosen or other.chosen or self.count != other.count or (self.ids is None) != (other.ids is None):
            return False
        return self.ids is None or torch.equal(self.known, other.known)

"""What the ids of a vocabulary become: those that stay keep their order."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping

import attrs
import torch

from prunekit_core.errors import ArgumentError


def _ascending(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(one) for one in ids}))


@attrs.frozen
class IdMap(Mapping[int, int]):
    """Old id to new id, of the ids that stay.

    The new id of a token is the number of tokens before it that stay. So comparisons (``ids < k``), maxima and the
    order of ids come out as before.

    Attributes:
        kept: The old ids that stay, ascending; their places are the new ids.
    """

    kept: tuple[int, ...] = attrs.field(converter=_ascending)

    def __getitem__(self, old: int) -> int:
        place = bisect.bisect_left(self.kept, old)
        if place == len(self.kept) or self.kept[place] != old:
            raise KeyError(old)
        return place

    def __iter__(self) -> Iterator[int]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def new(self, old: int, where: str) -> int:
        """Returns the new id of a token that has to be there.

        Args:
            old: Its old id.
            where: What names it, for the message.

        Raises:
            ArgumentError: It left.
        """
        if old not in self:
            raise ArgumentError("An id that is needed doesn't stay.", where=where, why=f"{old} isn't kept")
        return self[old]

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns new ids for a tensor of old ones.

        Args:
            ids: Tensor of integers, of any shape. Negative values (``-100``, a label that doesn't count) stay.

        Returns:
            Tensor of the same shape, dtype and device.

        Raises:
            ArgumentError: An id doesn't stay.
        """
        kept = torch.tensor(self.kept, device=ids.device, dtype=torch.long)
        values = ids.long()
        places = torch.searchsorted(kept, values.contiguous())
        known = kept[places.clamp(max=max(len(self.kept) - 1, 0))] == values
        if not bool((known | (values < 0)).all()):
            left = sorted(set(values[~known & (values >= 0)].tolist()))
            raise ArgumentError("Ids don't stay.", why=f"{left[:5]} aren't kept", hint="name them in keep")
        return torch.where(known, places, values).to(ids.dtype)

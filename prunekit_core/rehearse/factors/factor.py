"""By which factor a tensor of a smaller program differs from what it was before, as values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch

Logs = float | torch.Tensor
"""Logarithms of factors: one for all elements, or one for each (float64, on the CPU, in the tensor's shape). Along dims
in which it is the same everywhere such a tensor is expanded (stride 0): one as large as a weight is never made."""

CLOSE = 1e-9
"""Below this a logarithm is zero: the factors come from sizes, which differ by more."""


@attrs.frozen(eq=False)
class Deviation:
    """By which factor a tensor differs.

    Attributes:
        logs: The logarithm of the factor.
        counts: What a sum over the units that are left would be multiplied with to make up for those that aren't
            there, as a logarithm: with ``n`` units, and with ``n - 1`` (unbiased variances). It says that a number
            follows the units that are summed over, so that the two together are a mean.
        sources: Indices of the operations whose constants are behind it.
    """

    logs: Logs = 0.0
    counts: tuple[float, float] = (0.0, 0.0)
    sources: frozenset[int] = frozenset()

    @property
    def differs(self) -> bool:
        """Whether it differs at all."""
        return isinstance(self.logs, torch.Tensor) or abs(self.logs) > CLOSE

    def same_as(self, other: Deviation) -> bool:
        """Tells whether two deviations are equal."""
        return same(self.logs, other.logs) and self.counts == other.counts and self.sources == other.sources

    def is_mean(self) -> bool:
        """Tells whether the factor is just that of a mean over fewer units."""
        if isinstance(self.logs, torch.Tensor) or not self.differs:
            return False
        return any(abs(count) > CLOSE and abs(self.logs + count) <= CLOSE for count in self.counts)


PLAIN = Deviation()


class StuckError(Exception):
    """An operation can't hand the factors of its operands on; the message says why.

    Attributes:
        ways: What would help, in order of preference: each a list of (operand, what has to be added to its logarithms).
    """

    def __init__(self, why: str, *ways: Sequence[tuple[int, Logs]]) -> None:
        super().__init__(why)
        self.ways = ways


def same(first: Logs, second: Logs) -> bool:
    """Tells whether two factors are equal, element by element."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.shape == second.shape and bool(((slim(first) - slim(second)).abs() <= CLOSE).all())
    if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
        return False
    return abs(first - second) <= CLOSE


def slim(logs: torch.Tensor) -> torch.Tensor:
    """Returns a tensor with size 1 in the dims along which it is expanded: what differs, once."""
    for dim, (size, stride) in enumerate(zip(logs.shape, logs.stride(), strict=True)):
        if stride == 0 and size > 1:
            logs = logs.narrow(dim, 0, 1)
    return logs


def compact(logs: Logs) -> Logs:
    """Returns one number where all elements have the same factor."""
    if not isinstance(logs, torch.Tensor):
        return logs
    if not logs.numel():
        return 0.0
    first = logs[(0,) * logs.dim()]
    return float(first) if bool(((slim(logs) - first).abs() <= CLOSE).all()) else logs


def full(logs: Logs, shape: Sequence[int]) -> torch.Tensor:
    """Returns factors as a tensor of some shape, broadcasting."""
    if isinstance(logs, torch.Tensor):
        return logs.expand(tuple(shape))
    return torch.full((), logs, dtype=torch.float64, device="cpu").expand(tuple(shape))


def alike_along(logs: Logs, dims: Sequence[int], keepdim: bool) -> Logs | None:
    """Returns the factors without some dims, along which they must be the same; None where they aren't."""
    if not isinstance(logs, torch.Tensor) or not dims:
        return logs
    gone = {dim % logs.dim() for dim in dims}
    low, high = slim(logs).amin(tuple(dims), keepdim), slim(logs).amax(tuple(dims), keepdim)
    sizes = [(1 if dim in gone else size) for dim, size in enumerate(logs.shape) if keepdim or dim not in gone]
    return compact(low.expand(sizes)) if same(low, high) else None


def plus(first: Logs, second: Logs, shape: Sequence[int]) -> Logs:
    """Adds logarithms; tensors broadcast to a shape."""
    first, second = (slim(logs) if isinstance(logs, torch.Tensor) else logs for logs in (first, second))
    total = first + second
    return compact(total.expand(tuple(shape))) if isinstance(total, torch.Tensor) else total


def exponent(value: torch.Tensor, reference: torch.Tensor, base: float) -> float | None:
    """Returns ``p`` with ``value = base ** p * reference`` for all elements; None where there is none."""
    ratio = (value / reference).double().flatten()
    if not ratio.numel() or not bool((ratio.isfinite() & (ratio > 0)).all()):
        return None
    power = ratio.log() / math.log(base)
    return float(power[0]) if bool(((power - power[0]).abs() < 1e-6).all()) else None

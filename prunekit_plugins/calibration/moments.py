"""Means and covariances of what consumers read, gathered a block at a time.

Values are shifted by the mean of the first block, so that a mean that is large beside the variance costs no digits.
Products of float64 values and of up to `EXACT_WIDTH` features are made in float64. Those of wider float32 layers are
made in float32 for `ROWS` samples at a time, and added up in float64.

Of a covariance that is kept, a triangle is (see `Symmetric`): in float32 where its products were made in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from prunekit_core.errors import many
from prunekit_plugins.calibration.symmetric import Symmetric
from prunekit_plugins.calibration.uncertainty import Sampling, Uncertainty

EXACT_WIDTH = 512
ROWS = 8192
FEW = 4
"""Samples per feature below which a covariance is called a poor estimate."""
MOST = 0.5
"""Part of all that varies beyond which one example makes an estimate a poor one."""
CONSTANT = 1e-12
"""Part of the squared mean up to which deviations are rounding errors."""
_COLUMNS = 1024


@attrs.frozen(eq=False)
class Moments:
    """First and second moments of the features of one consumer, and of its outputs if they were gathered.

    Attributes:
        count: Number of samples.
        mean: Tensor ``[groups, features]``, float64.
        variance: Tensor ``[groups, features]``, float64, divided by ``count``.
        covariance: Tensor ``[groups, features, features]``, float64; None if it wasn't gathered. It may be made for
            each use, of a triangle that is kept.
        target_mean: Tensor ``[groups, outputs]``, float64; None without targets.
        target_variance: Tensor ``[groups, outputs]``, float64.
        cross: Tensor ``[groups, features, outputs]``, float64: covariances of features and targets.
        uncertainty: How far the covariance may be off; None where that isn't known.
    """

    count: int
    mean: torch.Tensor
    variance: torch.Tensor
    _covariance: torch.Tensor | Symmetric | None = None
    target_mean: torch.Tensor | None = None
    target_variance: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    uncertainty: Uncertainty | None = None

    @property
    def covariance(self) -> torch.Tensor | None:
        """Tensor ``[groups, features, features]``, float64; None if it wasn't gathered."""
        known = self._covariance
        return known.whole(torch.float64) if isinstance(known, Symmetric) else known

    @property
    def has_covariance(self) -> bool:
        """Whether it was gathered."""
        return self._covariance is not None

    def kept(self, dtype: torch.dtype) -> Moments:
        """Returns the same with a triangle of the covariance in a dtype, if there is one."""
        known = self.covariance
        return self if known is None else attrs.evolve(self, covariance=Symmetric.of(known, dtype))

    @property
    def independent(self) -> float:
        """How many independent samples would give a covariance that is known as well; `count` if that isn't known."""
        covariance = self.covariance
        if covariance is None or self.uncertainty is None:
            return float(self.count)
        return min(float(self.count), self.uncertainty.independent(covariance))

    @property
    def shrinkage(self) -> float:
        """The part by which covariances of different features are best reduced; 0 where nothing is known about it."""
        covariance = self.covariance
        if covariance is None or self.uncertainty is None:
            return 0.0
        return self.uncertainty.shrinkage(covariance)

    @property
    def caution(self) -> float:
        """The part by which they are reduced where an error would look like a gain: at least ``1 - n / p``.

        Of ``p`` features, ``n`` `independent` samples span ``n`` directions, and say nothing of the part ``1 - n / p``
        of all: what features share with each other there is not taken for granted. With as many samples as features it
        is what was observed that decides, by `shrinkage`.
        """
        return max(self.shrinkage, 1 - self.independent / self.mean.shape[1])

    def shrunk(self, part: float) -> torch.Tensor:
        """Returns ``(1 - part) C + part diag(C)``, tensor ``[groups, features, features]``."""
        covariance = self.covariance
        assert covariance is not None
        found = covariance * (1 - part)
        found.diagonal(dim1=1, dim2=2).add_(self.variance * part)
        return found

    def equals(self, other: Moments) -> bool:
        """Whether means and covariances, which are there, are the same."""
        one, two = self._covariance, other._covariance
        if not torch.equal(self.mean, other.mean):
            return False
        if isinstance(one, Symmetric) and isinstance(two, Symmetric):
            return one.equals(two)
        return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and torch.equal(one, two)


class Distinct:
    """Makes equal moments one object: consumers that read the same tensor need no room for each of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Moments] = {}

    def of(self, moments: Moments) -> Moments:
        """Returns the moments, or equal ones that it was given before."""
        if not moments.has_covariance or moments.cross is not None:
            return moments
        mean = moments.mean
        key = (moments.count, moments.uncertainty, mean.shape, mean.device, float(moments.variance.sum()))
        known = self._known.setdefault(key, moments)
        return known if known is moments or known.equals(moments) else moments


def doubts(name: str, parts: Sequence[Gatherer], width: int | None, independent: float = math.inf) -> list[str]:
    """Says what speaks against an estimate.

    Args:
        name: Of what was estimated.
        parts: What it was estimated from.
        width: Number of features of the covariance; None if there is none.
        independent: As how many independent samples they count.

    Returns:
        Lines for the report; none where nothing speaks against it.
    """
    found = []
    count, dropped = sum(part.count for part in parts), sum(part.dropped for part in parts)
    total, largest = sum(part.total for part in parts), max(part.largest for part in parts)
    if dropped:
        found.append(f"{name}: {dropped} of {many(dropped + count, 'sample')} not finite")
    worth = min(count, independent)
    if width is not None and count < FEW * width:
        found.append(_few(name, parts, width, worth))
    elif count and total <= CONSTANT * sum(part.size for part in parts):
        found.append(f"{name}: what it reads doesn't vary over {many(count, 'sample')}: a poor estimate")
    elif largest > MOST * total:
        found.append(f"{name}: one example makes up {largest / total:.0%} of what varies: a poor estimate")
    elif width is not None and worth < width:
        found.append(_few(name, parts, width, worth))
    return found


def _few(name: str, parts: Sequence[Gatherer], width: int, worth: float) -> str:
    """Says that there are too few samples, and how many more examples would do.

    Args:
        name: Of what was estimated.
        parts: What it was estimated from.
        width: Number of features.
        worth: As how many independent samples they count.
    """
    count, examples = sum(part.count for part in parts), sum(part.examples for part in parts)
    more = max(1, math.ceil(examples * FEW * width / max(1.0, worth)) - examples)
    told = many(count, "sample") + (f" that count as {worth:.0f}" if round(worth) < min(count, width) else "")
    return f"{name}: {told} for a covariance of {width} features: a poor estimate; {_round(more)} would do"


def _round(examples: int) -> str:
    """A number of examples with two digits that count."""
    digits = max(0, len(str(examples)) - 2)
    rounded = -(-examples // 10**digits) * 10**digits
    return f"{rounded:,} more {'examples' if rounded > 1 else 'example'}"


def is_finite(values: torch.Tensor) -> bool:
    """Tells that all values are finite by their sum, which large ones may overflow; False says nothing."""
    return math.isfinite(float(values.sum()))


def merge(a: Moments, b: Moments, *, apart: bool = True) -> Moments:
    """Returns the moments of two lots of samples together; parts that either lacks are left out.

    Args:
        a, b: The moments.
        apart: Whether the samples are of different examples.
    """
    count = a.count + b.count
    shares = (a.count / count, b.count / count)
    between = a.count * b.count / count**2

    def mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return shares[0] * one + shares[1] * other

    gap = a.mean - b.mean
    found = Moments(count, mean(a.mean, b.mean), mean(a.variance, b.variance) + between * gap.square())
    one, other = a.covariance, b.covariance
    if one is not None and other is not None:
        covariance = mean(one, other) + between * gap[:, :, None] * gap[:, None, :]
        found = attrs.evolve(found, covariance=covariance)
    if a.uncertainty is not None and b.uncertainty is not None:
        found = attrs.evolve(found, uncertainty=a.uncertainty.beside(b.uncertainty, shares, apart=apart))
    if a.cross is None or b.cross is None:
        return found
    assert a.target_mean is not None
    assert b.target_mean is not None
    assert a.target_variance is not None
    assert b.target_variance is not None
    goals = a.target_mean - b.target_mean
    return attrs.evolve(
        found,
        target_mean=mean(a.target_mean, b.target_mean),
        target_variance=mean(a.target_variance, b.target_variance) + between * goals.square(),
        cross=mean(a.cross, b.cross) + between * gap[:, :, None] * goals[:, None, :],
    )


class Gatherer:
    """Adds up moments.

    Args:
        covariance: Whether covariances are gathered, not variances alone.

    Attributes:
        count: Number of samples.
        dropped: Number of samples that were left out because they were not finite.
        size: Squared mean of the first block, times the number of samples.
        total: Sum of squared deviations of all samples, about the mean of the first block.
        largest: The largest sum of one example.
        users: How many consumers it adds up the samples of, who have all read the same so far.
    """

    def __init__(self, *, covariance: bool) -> None:
        self.covariance = covariance
        self.count = 0
        self.dropped = 0
        self.size = 0.0
        self.total = 0.0
        self.largest = 0.0
        self.users = 1
        self._sums: dict[str, torch.Tensor] = {}
        self._products: Symmetric | None = None
        self._exact = True
        self._sampling = Sampling()
        self._shifts: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def add(
        self, features: torch.Tensor, targets: torch.Tensor | None = None, examples: torch.Tensor | None = None
    ) -> None:
        """Adds samples; those with values that are not finite are left out and counted.

        Args:
            features: Tensor ``[groups, samples, features]``.
            targets: Tensor ``[groups, samples, outputs]``; for all calls or for none.
            examples: Tensor ``[samples]``, int64: which example each sample is a part of; None: each is one.
        """
        if not (is_finite(features) and (targets is None or is_finite(targets))):
            good = torch.isfinite(features).all(2).all(0)
            if targets is not None:
                good &= torch.isfinite(targets).all(2).all(0)
            self.dropped += len(good) - int(good.sum())
            features, targets = features[:, good], None if targets is None else targets[:, good]
            examples = None if examples is None else examples[good.to(examples.device)]
        kept = features.shape[1]
        squares = [
            self._add(part, None if targets is None else targets[:, start : start + ROWS])
            for start, part in zip(range(0, kept, ROWS), features.split(ROWS, 1), strict=False)
        ]
        if not kept:
            return
        self._weigh(torch.cat(squares), examples)
        if self.covariance:
            assert self._shifts is not None
            self._sampling.add(features.float() - self._shifts[0], examples)

    def copy(self) -> Gatherer:
        """Returns one that goes on by itself from what was added so far, for one consumer."""
        found = copy.copy(self)
        with torch.inference_mode(False):  # what adds up can be changed when the forward is over
            found._sums = {name: total.clone() for name, total in self._sums.items()}
            found._products = None if self._products is None else self._products.copy()
        found._sampling, found.users = copy.copy(self._sampling), 1
        return found

    @property
    def examples(self) -> int:
        """Number of examples that the samples are of; one counts for each call that had samples of it."""
        return self._sampling.examples

    def _weigh(self, squares: torch.Tensor, examples: torch.Tensor | None) -> None:
        """Notes how much of what varies is one example's."""
        if examples is not None:
            first = int(examples.min())
            places = (examples - first).to(squares.device)
            squares = squares.new_zeros(int(examples.max()) - first + 1).index_add_(0, places, squares)
        self.total, self.largest = self.total + float(squares.sum()), max(self.largest, float(squares.max()))

    def _add(self, features: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        """Adds a block of samples; returns the squared deviation of each, ``[samples]``, float64."""
        exact = features.dtype is torch.float64 or features.shape[2] <= EXACT_WIDTH
        dtype = torch.float64 if exact else torch.float32
        self._exact = self._exact and exact
        if self._shifts is None:
            wide = None if targets is None else targets.double().mean(1, keepdim=True).float()
            self._shifts = (features.double().mean(1, keepdim=True).float(), wide)
        x = features.to(dtype) - self._shifts[0].to(dtype)
        squares = x.square()
        if self.covariance:
            self._totals(x).add_product(x.transpose(1, 2), x)
        else:
            self._put("squares", squares.sum(1).double())
        if targets is not None:
            assert self._shifts[1] is not None
            y = targets.to(dtype) - self._shifts[1].to(dtype)
            self._put("target_sum", y.sum(1).double())
            self._put("target_squares", y.square().sum(1).double())
            self._put("cross", torch.matmul(x.transpose(1, 2), y))
        self.count += features.shape[1]
        self.size = float(self._shifts[0].double().square().sum()) * self.count
        self._put("sum", x.sum(1).double())
        return squares.sum((0, 2)).double()

    def _put(self, name: str, values: torch.Tensor) -> None:
        self._total(name, values.shape, values.device).add_(values)

    def _total(self, name: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """Returns what adds up, which can be changed when the forward is over."""
        if name not in self._sums:
            with torch.inference_mode(False):
                self._sums[name] = torch.zeros(shape, dtype=torch.float64, device=device)
        return self._sums[name]

    def _totals(self, like: torch.Tensor) -> Symmetric:
        """Returns the sums of products of features ``[groups, samples, features]`` such as these."""
        if self._products is None:
            with torch.inference_mode(False):
                self._products = Symmetric.zeros(like.shape[0], like.shape[2], torch.float64, like.device)
        return self._products

    def center(self) -> torch.Tensor | None:
        """Returns the mean of the samples so far, ``[groups, features]``, float64; None when there were none."""
        if self._shifts is None:
            return None
        return self._sums["sum"] / self.count + self._shifts[0][:, 0].double()

    @property
    def kept_in(self) -> torch.dtype:
        """The dtype in which a covariance that stays may be kept: that in which its products were made."""
        return torch.float64 if self._exact else torch.float32

    def moments(self) -> Moments | None:
        """Returns the moments of all samples, None when there were none; call it once, at the end."""
        if self._shifts is None:
            return None
        n, sums = self.count, self._sums
        self._sums = {}
        mean = sums["sum"] / n
        shift, wide = self._shifts
        covariance = target_mean = target_variance = cross = None
        uncertainty = None
        if self.covariance:
            assert self._products is not None
            covariance, self._products = self._products.spent(torch.float64).div_(n), None
            width = covariance.shape[1]
            uncertainty = self._sampling.uncertainty(covariance, n)
            for start in range(0, width, _COLUMNS):
                stop = min(start + _COLUMNS, width)
                covariance[:, :, start:stop] -= mean[:, :, None] * mean[:, None, start:stop]
            variance = covariance.diagonal(dim1=1, dim2=2).clamp(min=0)
        else:
            variance = (sums["squares"] / n - mean.square()).clamp(min=0)
        if wide is not None:
            target_mean = sums["target_sum"] / n
            target_variance = (sums["target_squares"] / n - target_mean.square()).clamp(min=0)
            cross = sums["cross"].div_(n).sub_(mean[:, :, None] * target_mean[:, None, :])
            target_mean = target_mean + wide[:, 0].double()
        whole_mean = mean + shift[:, 0].double()
        return Moments(n, whole_mean, variance, covariance, target_mean, target_variance, cross, uncertainty)

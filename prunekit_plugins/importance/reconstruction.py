"""Reconstruction: what is lost when a unit goes and the units that stay make up for it as well as they can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import torch

from prunekit.plugin import ArgumentError, Group, Moments, SiteStatistics, Statistics
from prunekit_plugins.importance.contributions import FromStatistics
from prunekit_plugins.importance.reductions import Normalizer

ROUNDS = 32
ROWS = 4096
"""Rows of a weight whose products are made at a time."""
TINY = 1e-6
"""Part of the mean that is added to a curvature, or a variance, that may be zero."""


class ReconstructionImportance(FromStatistics):
    """Scores a unit by the error that its removal adds after the best update of all other weights.

    For a consumer ``y = W x + b`` with ``H`` the covariance of ``x`` plus a ridge, and ``U`` the features of a unit:
    ``s[c] = tr(W_U [(H^-1)_UU]^-1 W_U^T)`` (Hassibi and Stork, *Optimal Brain Surgeon*, NIPS 1992, for a block of
    weights and all rows at once; Kurtic et al., *ZipLM*, NeurIPS 2023). Units are taken away greedily, the worst ones
    first, in rounds; after each, ``W`` and ``H^-1`` are updated as if they had gone, so that two units that repeat each
    other don't both look superfluous. The errors of all consumers add up. A unit's score is the error that it adds when
    its turn comes, but at least that of the units before it.

    With curvatures, ``A^T W`` stands for ``W``, where ``A A^T`` is the mean of a consumer's curvature ``G`` and of its
    diagonal: the error is the squared change of the model's outputs, as K-FAC estimates it, not that of the consumer's.

    From fewer samples than features it would follow that some of these make up for all others, at no cost. So ``H`` is
    made of ``(1 - rho) C + rho diag(C)``, with `Moments.caution` ``rho``, which is small where there are many.

    Args:
        statistics: What `calibrate` gathered, with covariances; may be set later.
        normalizer: A name, a callable on the scores, or None.
        ridge: What is added to the variances, as a multiple of each, or of their mean where that is less: where a few
            features vary hundreds of times more than all others, as in some layers of language models, a multiple of
            the mean would hide how far the others make up for each other.
        rounds: In how many rounds units are taken away; at most as many as there are units.
        curvatures: Whether errors count by what they do to the outputs of the model, where that is known.
        shrink: Whether covariances of different features are reduced where there are few samples, by `Moments.caution`.

    Raises:
        ArgumentError: The normalizer is unknown, or ``ridge`` or ``rounds`` is not positive.
    """

    needs: Sequence[str] = ("covariances",)
    wishes: Sequence[str]

    def __init__(
        self,
        statistics: Statistics | None = None,
        normalizer: str | Normalizer | None = "mean",
        ridge: float = 1e-2,
        rounds: int = ROUNDS,
        curvatures: bool = True,
        *,
        shrink: bool = True,
    ) -> None:
        super().__init__(statistics, "sum", normalizer)
        if not ridge > 0 or not rounds > 0:
            raise ArgumentError("ridge and rounds must be positive numbers.", why=f"got {ridge!r} and {rounds!r}")
        self.ridge, self.rounds, self.shrink = ridge, rounds, shrink
        self.wishes = ("curvatures",) if curvatures else ()

    @property
    def additive(self) -> bool:
        """Whether scores are squared changes of the model's outputs, which add up, and weren't normalized."""
        return self._weighted and self.members.normalizer is None

    @property
    def _weighted(self) -> bool:
        return bool(self.wishes) and self.statistics is not None and "curvatures" in self.statistics

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection, float64; None when no consumer of the units was seen.

        Raises:
            ArgumentError: There are no statistics, they have no covariances, or the model was pruned since.
        """
        members, units = self.consumers(group), group.size()
        readers: list[_Reader] = []
        for view in members:
            unit_of = torch.full((view.tensor.shape[view.dim],), -1, device="cpu")
            unit_of[view.positions] = view.units
            for seen, weight in self.matrices(view):
                labels = unit_of[seen.site.positions(view.dim)]
                parts = [_square(part) for part in (weighted(weight, seen) if self._weighted else root(weight))]
                known = next((reader for reader in readers if reader.reads_too(seen.moments, labels)), None)
                if known is None:
                    readers.append(_Reader(seen.moments, labels, parts))
                else:
                    known.parts = [_square(torch.cat(both)) for both in zip(known.parts, parts, strict=True)]
        blocks = [block for reader in readers for block in reader.blocks(self.ridge, shrink=self.shrink)]
        if not blocks:
            return None
        return self.members.join(group, members[:1], [_take_away(blocks, units, min(self.rounds, units))])


def weighted(weight: torch.Tensor, seen: SiteStatistics) -> torch.Tensor:
    """Returns ``A^T W``, where ``A A^T`` is the mean of a curvature and its diagonal, or what has the same products.

    The diagonal is known well from few samples, what is beside it less so.

    Args:
        weight: Tensor ``[groups, outputs, features]``.
        seen: What the consumer read, with curvatures.

    Returns:
        Tensor ``[groups, outputs or features, features]``, float64; zero where the curvature is.
    """
    diagonal = seen.diagonal
    scale = diagonal.mean(1)[:, None]
    known = (scale > 0)[:, :, None]
    if not seen.whole_curvature:
        return root(weight, (diagonal + TINY * scale).sqrt()) * known
    weight, more = weight.double(), diagonal / 2 + torch.where(scale > 0, TINY * scale, 1)
    if weight.shape[1] > weight.shape[2]:
        found = _factor(weight.transpose(1, 2) @ (seen.bent(weight) / 2 + more[:, :, None] * weight))
        if found is not None:
            return found * known
    curvature = seen.curvature
    assert curvature is not None
    shrunk = curvature.double() / 2
    shrunk.diagonal(dim1=1, dim2=2).add_(more)
    whole: torch.Tensor = torch.linalg.cholesky(shrunk).transpose(1, 2) @ weight
    return whole * known


def root(weight: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Returns a weight with its rows multiplied, or what has the same products ``W^T W``: a vocabulary has many rows.

    Args:
        weight: Tensor ``[groups, outputs, features]``.
        factors: Tensor ``[groups, outputs]``; None for ones.

    Returns:
        Tensor ``[groups, outputs or features, features]``, float64.
    """
    factors = weight.new_ones(weight.shape[:2]) if factors is None else factors
    groups, outputs, features = weight.shape
    if outputs > features:
        products = torch.zeros(groups, features, features, dtype=torch.float64, device=weight.device)
        for part, some in zip(weight.split(ROWS, 1), factors.split(ROWS, 1), strict=True):
            wide = part.double() * some[:, :, None]
            products.baddbmm_(wide.transpose(1, 2), wide)
        found = _factor(products)
        if found is not None:
            return found
    return weight.double() * factors[:, :, None]


def _factor(products: torch.Tensor) -> torch.Tensor | None:
    """Returns the upper triangular ``R`` with ``R^T R`` as products; None where there is none but for rounding."""
    found, failed = torch.linalg.cholesky_ex(products, upper=True)
    return None if bool(failed.any()) else found


@attrs.define(eq=False)
class _Reader:
    """Consumers that read the same: their weights count as one, on top of each other.

    Attributes:
        moments: Of what they read.
        labels: Tensor ``[groups, features]``: which unit each feature belongs to.
        parts: For each group a tensor ``[outputs or features, features]``, of which the squares count.
    """

    moments: Moments
    labels: torch.Tensor
    parts: list[torch.Tensor]

    def reads_too(self, moments: Moments, labels: torch.Tensor) -> bool:
        """Tells whether another consumer reads the same."""
        return moments is self.moments and torch.equal(labels, self.labels)

    def blocks(self, ridge: float, *, shrink: bool) -> Iterator[_Block]:
        """Makes a block for each group; call it once."""
        covariance = self.moments.shrunk(self.moments.caution if shrink else 0.0)
        for part, of_group, labels in zip(self.parts, covariance, self.labels, strict=True):
            block = _Block.of(part, of_group, labels, ridge)
            if block is not None:
                yield block
        self.parts.clear()


@attrs.define(eq=False)
class _Block:
    """One consumer, or one of its groups, with the features that are left.

    With ``K`` the inverse covariance and ``R`` what went, the inverse of what is left is ``K - K_R^T (K_RR)^-1 K_R``.
    Only its rows of what goes next and its blocks of each unit are needed: it is kept as ``K - P^T P``, with as many
    rows in ``P`` as features went (a pivoted Cholesky factor), and made when half of them did.

    Attributes:
        weight: Tensor ``[outputs or features, features]``, of which the squares count; updated as units go.
        inverse: Tensor ``[features, features]``: ``K``, for the features that were left when it was made.
        labels: Tensor ``[features]``: which unit each belongs to; -1 for none that may go, or that is gone.
        stays: Bool tensor ``[features]``: those that are left.
        factor: Tensor ``[rows, features]``, of which the first ``gone`` rows are ``P``.
        most: Number of units, or more.
        gone: Number of features that went since ``K`` was made.
        taken: Number of features of a unit to a tensor ``[units, features, features]``: the blocks of ``P^T P`` of the
            units that have so many.
    """

    weight: torch.Tensor
    inverse: torch.Tensor
    labels: torch.Tensor
    stays: torch.Tensor
    factor: torch.Tensor
    most: int
    gone: int = 0
    taken: dict[int, torch.Tensor] = attrs.field(factory=dict)

    @classmethod
    def of(cls, weight: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, ridge: float) -> _Block | None:
        """Makes a block; None where nothing that it reads varies, so that whatever goes costs nothing."""
        scale = covariance.diagonal().mean()
        if not scale > 0:
            return None
        regular = covariance.clone()
        regular.diagonal().add_(ridge * covariance.diagonal().clamp(max=scale) + TINY * scale)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(regular))
        stays = torch.ones(len(labels), dtype=torch.bool, device=weight.device)
        most = int(labels.max()) + 1
        return cls(weight, inverse, labels.clone(), stays, _room_for_factor(inverse), most)

    def errors(self, units: int) -> torch.Tensor:
        """What each unit adds if it goes next: tensor ``[units]``; features that went count nothing."""
        found = self.weight.new_zeros(units)
        for chosen, places in self._units():
            inner = self.inverse[places[:, :, None], places[:, None, :]]
            inner = inner - self._taken(places.shape[1])[chosen]
            if places.shape[1] == 1:
                found[chosen] = self.weight.square().sum(0)[places[:, 0]] / inner.flatten()
                continue
            columns = self.weight[:, places].permute(1, 2, 0)  # [units, features, outputs]
            found[chosen] = (columns * torch.linalg.solve(inner, columns)).sum((1, 2))
        return found

    def _units(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the units that are left and have as many features as each other, and the places of these."""
        held = (self.labels >= 0).nonzero().flatten()
        order = held[self.labels[held].argsort(stable=True)]
        counts = torch.bincount(self.labels[held])
        starts = counts.cumsum(0) - counts
        for count in counts.unique().tolist():
            if count:
                chosen = (counts == count).nonzero().flatten()
                turns = starts[chosen][:, None] + torch.arange(count, device="cpu")
                yield chosen.to(self.weight.device), order[turns].to(self.weight.device)

    def _taken(self, count: int) -> torch.Tensor:
        if count not in self.taken:
            self.taken[count] = self.weight.new_zeros(self.most, count, count)
        return self.taken[count]

    def remove(self, units: torch.Tensor) -> None:
        """Takes units away, and lets the features that stay make up for them."""
        gone = torch.isin(self.labels, units.cpu())
        count = int(gone.sum())
        if not count:
            return
        places = gone.nonzero().flatten().to(self.weight.device)
        past = self.factor[: self.gone]
        rows = torch.addmm(self.inverse[places], past[:, places].T, past, alpha=-1)
        lower = torch.linalg.cholesky(rows[:, places])
        if self.gone + count > len(self.factor):
            self.factor = torch.cat([self.factor[: self.gone], self.factor.new_empty(count, self.factor.shape[1])])
        new = self.factor[self.gone : self.gone + count]
        new.copy_(torch.linalg.solve_triangular(lower, rows, upper=False))
        moved = torch.linalg.solve_triangular(lower, self.weight[:, places].T, upper=False)
        self.weight.addmm_(moved.T, new, alpha=-1)
        self.labels[gone] = -1
        self.stays[places] = False
        self.gone += count
        if self.gone > len(self.labels) // 2:
            self._compact()
            return
        for chosen, left in self._units():
            parts = new[:, left].permute(1, 2, 0)  # [units, features, gone now]
            self._taken(left.shape[1])[chosen] += parts @ parts.transpose(1, 2)

    def _compact(self) -> None:
        """Makes the inverse of what is left."""
        past, stay = self.factor[: self.gone][:, self.stays], self.stays.nonzero().flatten()
        self.inverse = self.inverse[stay[:, None], stay].addmm_(past.T, past, alpha=-1)
        self.weight, self.labels = self.weight[:, stay], self.labels[stay.cpu()]
        self.stays, self.gone = self.stays[stay], 0
        self.factor = _room_for_factor(self.inverse)
        self.taken.clear()


def _room_for_factor(inverse: torch.Tensor) -> torch.Tensor:
    """Returns memory for what goes until the inverse is made anew, which is when more than half went."""
    width = len(inverse)
    return inverse.new_empty(width // 2 + width // ROUNDS + 1, width)


def _square(weight: torch.Tensor) -> torch.Tensor:
    """Returns a matrix with the same products ``W^T W`` and at most as many rows as columns, in memory of its own."""
    if weight.shape[0] <= weight.shape[1]:
        return weight.clone()
    found: torch.Tensor = torch.linalg.qr(weight, mode="r").R
    return found


def _take_away(blocks: Sequence[_Block], units: int, rounds: int) -> torch.Tensor:
    """Takes all units away, the cheapest first; returns what each added, never less than one before it."""
    device = blocks[0].weight.device
    scores = torch.zeros(units, dtype=torch.float64, device=device)
    left = torch.arange(units, device=device)
    floor = scores.new_zeros(())
    for number in range(rounds):
        errors = torch.stack([block.errors(units).to(device) for block in blocks]).sum(0)[left].clamp(min=floor)
        count = len(left) // (rounds - number) if number < rounds - 1 else len(left)
        order = errors.argsort(stable=True)[:count]
        scores[left[order]] = errors[order]
        floor = errors[order].max() if count else floor
        for block in blocks if number < rounds - 1 else ():  # after the last one nothing is left to make up for it
            block.remove(left[order])
        stays = torch.ones(len(left), dtype=torch.bool, device=device)
        stays[order] = False
        left = left[stays]
    return scores

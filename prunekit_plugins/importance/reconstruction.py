"""Reconstruction: what is lost when a unit goes and the units that stay make up for it as well as they can."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from prunekit.plugin import ArgumentError, Group, SiteStatistics, Statistics
from prunekit_plugins.importance.contributions import FromStatistics
from prunekit_plugins.importance.reductions import Normalizer

ROUNDS = 32
TINY = 1e-6
"""Part of the mean curvature that is added to that of outputs that nothing depends on."""


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
        ridge: What is added to the variances, as a multiple of their mean.
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
        blocks = []
        for view in members:
            unit_of = torch.full((view.tensor.shape[view.dim],), -1, device="cpu")
            unit_of[view.positions] = view.units
            for seen, weight in self.reads(view):
                covariance = seen.moments.shrunk(seen.moments.caution if self.shrink else 0.0)
                labels = unit_of[seen.site.positions(view.dim)]
                if self._weighted:
                    weight = weighted(weight, seen)
                for k in range(len(labels)):
                    block = _Block.of(weight[k], covariance[k], labels[k], self.ridge)
                    blocks += [block] if block is not None else []
        if not blocks:
            return None
        return self.members.join(group, members[:1], [_take_away(blocks, units, min(self.rounds, units))])


def weighted(weight: torch.Tensor, seen: SiteStatistics) -> torch.Tensor:
    """Returns ``A^T W``, where ``A A^T`` is the mean of a curvature and its diagonal.

    The diagonal is known well from few samples, what is beside it less so.

    Args:
        weight: Tensor ``[groups, outputs, features]``, float64.
        seen: What the consumer read, with curvatures.

    Returns:
        Tensor of the shape of the weight; zero where the curvature is.
    """
    assert seen.curvature is not None
    diagonal = seen.diagonal
    scale = diagonal.mean(1)[:, None]
    known = (scale > 0)[:, :, None]
    if seen.curvature.dim() == diagonal.dim():
        return weight * (diagonal + TINY * scale).sqrt()[:, :, None] * known
    shrunk = (seen.curvature.double() + torch.diag_embed(diagonal)) / 2
    shrunk.diagonal(dim1=1, dim2=2).add_(torch.where(scale > 0, TINY * scale, 1))
    found: torch.Tensor = torch.linalg.cholesky(shrunk).transpose(1, 2) @ weight
    return found * known


@attrs.define(eq=False)
class _Block:
    """One consumer, or one of its groups.

    Attributes:
        weight: Tensor ``[outputs, features]`` of the features that are left, updated as units go.
        inverse: Tensor ``[features, features]``: their inverse covariance.
        labels: Tensor ``[features]``: which unit each belongs to; -1 for none.
    """

    weight: torch.Tensor
    inverse: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, ridge: float) -> _Block | None:
        """Makes a block; None where nothing that it reads varies, so that whatever goes costs nothing."""
        scale = covariance.diagonal().mean()
        if not scale > 0:
            return None
        regular = covariance.clone()
        regular.diagonal().add_(ridge * scale)
        return cls(weight, torch.cholesky_inverse(torch.linalg.cholesky(regular)), labels)

    def errors(self, units: int) -> torch.Tensor:
        """What each unit adds if it goes next: tensor ``[units]``; features that went count nothing."""
        found = self.weight.new_zeros(units)
        held = (self.labels >= 0).nonzero().flatten()
        order = held[self.labels[held].argsort(stable=True)]
        counts = torch.bincount(self.labels[held], minlength=units)
        starts = counts.cumsum(0) - counts
        for count in counts.unique().tolist():
            if not count:
                continue
            chosen = (counts == count).nonzero().flatten()
            turns = starts[chosen][:, None] + torch.arange(count, device="cpu")
            places = order[turns].to(self.weight.device)  # [chosen, count]
            found[chosen.to(found.device)] = self._errors_of(places)
        return found

    def _errors_of(self, places: torch.Tensor) -> torch.Tensor:
        """What units add that have as many features, ``[units, features]``, as each other."""
        if places.shape[1] == 1:
            column = places[:, 0]
            return self.weight.square().sum(0)[column] / self.inverse.diagonal()[column]
        columns = self.weight[:, places].permute(1, 2, 0)  # [units, features, outputs]
        inner = self.inverse[places[:, :, None], places[:, None, :]]
        found: torch.Tensor = (columns * torch.linalg.solve(inner, columns)).sum((1, 2))
        return found

    def remove(self, units: torch.Tensor) -> None:
        """Takes units away, and lets the features that stay make up for them."""
        gone = torch.isin(self.labels, units.cpu())
        if not gone.any():
            return
        places, stay = (found.nonzero().flatten().to(self.weight.device) for found in (gone, ~gone))
        rows = self.inverse[places]
        across = rows[:, stay]
        solved = torch.linalg.solve(rows[:, places], across)
        self.weight = self.weight[:, stay].addmm_(self.weight[:, places], solved, alpha=-1)
        self.inverse = self.inverse[stay][:, stay].addmm_(across.T, solved, alpha=-1)
        self.labels = self.labels[~gone]


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

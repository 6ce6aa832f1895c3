"""Experts of a mixture by what calibration data say about them: whom tokens are sent to, and what they add."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.plugin import ArgumentError, ExpertStatistics, Group, Statistics
from prunekit_plugins.importance.contributions import check_statistics
from prunekit_plugins.importance.effect import typical_effect

RIDGE = 1e-9
"""What the squared norm of what an expert adds is increased by, as a part of it: others may add exactly the same."""


class FromExperts:
    """What criteria for experts share: the statistics of the mixture that a group belongs to.

    They have nothing to say about units that are no experts. Of experts that calibration never reached they know
    nothing, and say so.

    Args:
        statistics: What `calibrate` gathered; may be set later (``prune(..., calibration=...)`` does).
    """

    needs: Sequence[str] = ("routing",)

    def __init__(self, statistics: Statistics | None = None) -> None:
        self.statistics = statistics

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected experts of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection, float64; None for a group that is none of experts whose
            mixture was seen.

        Raises:
            ArgumentError: There are no statistics, they lack what is needed, or experts left since.
        """
        found = [self._of(name) for name in group.units]
        seen = [one for one in found if one is not None]
        if not seen or len(seen) < len(found):
            return None
        for name, one in zip(group.units, seen, strict=True):
            _check(group, name, one)
        scores = dict(zip(group.units, (self.scores(one) for one in seen), strict=True))
        return torch.stack([scores[name][unit] for name, unit in group.chosen()])

    def unknown(self, group: Group) -> Sequence[int]:
        """Lists the experts that calibration never reached, by their place in the selection."""
        return [place for place, (name, unit) in enumerate(group.chosen()) if unit in self._unreached(name)]

    def scores(self, experts: ExpertStatistics) -> torch.Tensor:
        """Scores all experts of a mixture.

        Returns:
            Tensor ``[units]``, float64.
        """
        raise NotImplementedError

    def _unreached(self, name: str) -> Sequence[int]:
        found = self._of(name)
        return () if found is None else found.unreached

    def _of(self, name: str) -> ExpertStatistics | None:
        found = check_statistics(self, self.statistics).experts.get(name)
        if found is not None and not self._has(found):
            raise ArgumentError(
                f"The statistics have no {self.needs[0]}.",
                where=name,
                hint=f"calibrate(model, batches, parts={[*self.needs]!r}); of mixtures whose experts' weights aren't "
                "one tensor nobody can tell what each adds: take rerouting",
            )
        return found

    def _has(self, experts: ExpertStatistics) -> bool:
        return True


def _check(group: Group, name: str, experts: ExpertStatistics) -> None:
    if len(group.graph.remaining(name)) != len(experts.routed):
        raise ArgumentError(
            "The model was pruned since its statistics were gathered.", where=name, hint="calibrate anew"
        )


class ExpertFrequencyImportance(FromExperts):
    """Scores an expert by the part of the tokens that are sent to it.

    An expert that is chosen often may add little, and one for a few tokens much: it is what routers are balanced by,
    and the weakest of these criteria.

    Args:
        statistics: What `calibrate` gathered, with ``"routing"``; may be set later.
    """

    def scores(self, experts: ExpertStatistics) -> torch.Tensor:
        """``n_j / n``."""
        return experts.routed.double() / max(1, experts.tokens)


class REAPImportance(FromExperts):
    """Scores an expert by what it adds to the tokens that are sent to it.

    ``s[j] = mean over tokens x sent to j of g_j(x) ||f_j(x)||_2``, with ``g_j`` the weight as the model uses it and
    ``f_j`` what the expert puts out (Lasby et al., *REAP the Experts: Why Pruning Prevails for One-Shot MoE
    Compression*, 2025, router-weighted expert activation pruning). Where the weight multiplies what the expert reads it
    is ``||f_j(g_j(x) x)||``. Of several experts that leave together the mean is over the tokens of all.

    Args:
        statistics: What `calibrate` gathered, with ``"contributions"``; may be set later.
        relative: Whether scores are divided by the root mean square of the norm of what the mixture puts out, so that
            those of several layers can be compared. The order within a layer stays.
    """

    needs: Sequence[str] = ("contributions",)

    def __init__(self, statistics: Statistics | None = None, relative: bool = True) -> None:
        super().__init__(statistics)
        self.relative = relative

    def scores(self, experts: ExpertStatistics) -> torch.Tensor:
        """The mean of ``g_j(x) ||f_j(x)||``."""
        assert experts.weighted is not None
        scores = experts.weighted / experts.routed.clamp(min=1)
        scale = (experts.energy / max(1, experts.tokens)) ** 0.5
        return scores / scale if self.relative and scale > 0 else scores

    def _has(self, experts: ExpertStatistics) -> bool:
        return experts.weighted is not None


class ReroutingImportance(FromExperts):
    """Scores an expert by what changes if it can't be chosen and its tokens are sent to others, as the model does it.

    With ``y`` what a mixture puts out and ``y_j`` the same with the router's score of expert ``j`` at minus infinity,
    all else as in the model (what is chosen instead, how weights are normalised): ``s[j] = sum over tokens of
    (y_j - y)^T G (y_j - y)``, by example, with ``G`` the mean of the squared gradients of random projections of the
    model's outputs: the expected squared change of these, to first order, as `ReconstructionImportance` estimates it
    for units. It is a multiple of the mean effect of an output of any layer, where that was gathered, so that experts
    and units can be weighed against each other. Nothing is assumed to make up for an expert but its stand-ins. The sum
    is over the tokens that are sent to ``j``: where weights aren't normalised over the chosen experts, those of other
    tokens change a little as well, which isn't counted.

    Without gradients it is the error relative to what the mixture puts out: ``sum ||y_j - y||^2 / sum ||y||^2``.

    Args:
        statistics: What `calibrate` gathered, with ``"rerouting"``; may be set later.
    """

    needs: Sequence[str] = ("rerouting",)

    @property
    def additive(self) -> bool:
        """Whether scores are squared changes of the model's outputs, which add up."""
        if self.statistics is None:
            return False
        return all(experts.damage is not None for experts in self.statistics.experts.values())

    def scores(self, experts: ExpertStatistics) -> torch.Tensor:
        """The squared change of the outputs, or else of what the mixture puts out."""
        assert self.statistics is not None
        assert experts.error is not None
        if self.additive and experts.damage is not None:
            return experts.damage / max(1, experts.examples) / typical_effect(self.statistics)
        return experts.error / (experts.energy or 1.0)

    def _has(self, experts: ExpertStatistics) -> bool:
        return experts.error is not None


class ExpertReconstructionImportance(FromExperts):
    """Scores an expert by the error that its removal adds after a least-squares fit of the experts that stay.

    With ``c_j(x) = g_j(x) f_j(x)`` what expert ``j`` adds for token ``x`` (zero where ``x`` isn't sent to it), a
    mixture puts out ``y = sum_j c_j``. If only the experts of ``K`` stay and each of them may be scaled, what is lost
    is ``min_a sum_x (y - sum_{j in K} a_j c_j)^T G (y - sum_{j in K} a_j c_j)``, by example. With the inner products
    ``P_ij = sum_x c_i^T G c_j`` of the experts that are left and their factors ``a``, which are 1 at first, removing
    one more adds ``s[j] = a_j^2 / (P^-1)_jj`` (Hassibi and Stork, *Optimal Brain Surgeon*, NIPS 1992, with experts for
    weights). Experts are removed greedily, the cheapest first; after each, ``P^-1`` is downdated and ``a`` fitted. A
    score is what an expert adds when its turn comes, but at least what those before it added. Of two experts that do
    the same for the same tokens only one looks superfluous.

    ``G`` and the scale are those of `ReroutingImportance`: the expected squared change of the model's outputs, to first
    order, as a multiple of the mean effect of an output of any layer. Without gradients ``G = 1``, relative to what the
    mixture puts out: ``s[j] / sum ||y||^2``. Tokens aren't sent to other experts in this estimate; where a token is
    sent to one expert only it is ``sum_x c_j^T G c_j``.

    Args:
        statistics: What `calibrate` gathered, with ``"products"``; may be set later.
    """

    needs: Sequence[str] = ("products",)

    @property
    def additive(self) -> bool:
        """Whether scores are squared changes of the model's outputs, which add up."""
        if self.statistics is None:
            return False
        return all(experts.weighed_products is not None for experts in self.statistics.experts.values())

    def scores(self, experts: ExpertStatistics) -> torch.Tensor:
        """What each adds to the squared change of the outputs, or else of what the mixture puts out, in its turn."""
        assert self.statistics is not None
        assert experts.products is not None
        if self.additive and experts.weighed_products is not None:
            return _taken_away(experts.weighed_products) / max(1, experts.examples) / typical_effect(self.statistics)
        return _taken_away(experts.products) / (experts.energy or 1.0)

    def _has(self, experts: ExpertStatistics) -> bool:
        return experts.products is not None


def _taken_away(products: torch.Tensor) -> torch.Tensor:
    """Removes all units greedily; returns what each adds to the error of the best fit by those that are left.

    Args:
        products: Inner products of what units add: tensor ``[units, units]``, float64, positive semidefinite. A unit
            that adds nothing costs nothing.

    Returns:
        Tensor ``[units]``, float64.
    """
    squares = products.diagonal().clamp(min=0)
    weights = squares.sqrt()  # factors of what they add, at length 1
    norms = torch.where(squares > 0, weights, 1)
    cosines = products / norms[:, None] / norms
    cosines.diagonal().fill_(1 + RIDGE)
    inverse = torch.linalg.inv(cosines)
    scores, left = torch.zeros_like(squares), torch.ones_like(squares, dtype=torch.bool)
    floor = 0.0
    for _ in squares:
        errors = torch.where(left, weights.square() / inverse.diagonal(), torch.inf)
        unit = int(errors.argmin())
        scores[unit] = floor = max(floor, float(errors[unit]))
        left[unit] = False
        column = inverse[:, unit] / inverse[unit, unit]
        weights = weights - weights[unit] * column
        inverse = inverse - torch.outer(column, column) * inverse[unit, unit]
        inverse[unit, unit] = 1  # gone: nothing of it is read any more
    return scores

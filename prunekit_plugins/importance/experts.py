"""Experts of a mixture by what calibration data say about them: whom tokens are sent to, and what they add."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.plugin import ArgumentError, ExpertStatistics, Group, Statistics
from prunekit_plugins.importance.contributions import check_statistics
from prunekit_plugins.importance.effect import typical_effect


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
    and the weakest of the three criteria.

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

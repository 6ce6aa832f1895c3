"""The criterion that is taken where there are calibration data and none was chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.plugin import Group, Statistics
from prunekit_plugins.importance.contributions import ActivationVarianceImportance
from prunekit_plugins.importance.effect import EffectImportance, typical_effect
from prunekit_plugins.importance.magnitude import GroupMagnitudeImportance
from prunekit_plugins.importance.members import name_of
from prunekit_plugins.importance.reconstruction import ReconstructionImportance


class CalibratedImportance:
    """Scores a unit by what the model loses if it goes and the units that stay make up for it as well as they can.

    That is `ReconstructionImportance`, with curvatures. Dims of queries and keys have no consumer: they are only
    multiplied with each other, and `EffectImportance` scores them. Both are squared changes of the model's outputs, so
    that groups can be compared; they are given as multiples of the mean effect of an output of any layer, and where
    neither layer was seen units are scored by magnitude, divided by its mean within the group. Nothing makes up for the
    neurons of experts in stacks of weights: where statistics of the experts are there (``"rerouting"``) they are scored
    by what the outputs lose without them, to first order, or else share by magnitude what these lose without the
    mixture.

    Without curvatures all scores are divided by their mean within the group, and where there is no consumer magnitude
    counts; without covariances `ActivationVarianceImportance` stands for reconstruction.

    Args:
        statistics: What `calibrate` gathered; may be set later (``prune(..., calibration=...)`` does).
        curvatures: Whether errors count by what they do to the outputs of the model, where that is known.
    """

    needs: Sequence[str] = ("covariances",)
    otherwise: Sequence[str] = ("moments",)
    wishes: Sequence[str]

    def __init__(self, statistics: Statistics | None = None, curvatures: bool = True) -> None:
        self.statistics = statistics
        self.wishes = ("curvatures",) if curvatures else ()
        self._typical: tuple[Statistics, float] | None = None

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection; None when no member counts.

        Raises:
            ArgumentError: There are no statistics, or the model was pruned since.
        """
        statistics, scores = self.statistics, None
        if statistics is not None and "covariances" in statistics:
            if self.additive:
                scores = ReconstructionImportance(statistics, None)(group)
                scores = EffectImportance(statistics, normalizer=None)(group) if scores is None else scores
                scores = None if scores is None else scores / self._scale(statistics)
            else:
                scores = ReconstructionImportance(statistics, curvatures=False)(group)
        if scores is None:
            scores = ActivationVarianceImportance(statistics)(group)
        return self._unread(group) if scores is None else scores

    def _unread(self, group: Group) -> torch.Tensor | None:
        """Scores units that no layer was seen to read: neurons of experts by what the outputs lose without them."""
        found = self._of_experts(group)
        return self._by_magnitude(group) if found is None else found

    def _of_experts(self, group: Group) -> torch.Tensor | None:
        """Scores neurons of experts; None for other units, and where nothing is known about them."""
        statistics = self.statistics
        if statistics is None or not self.additive:
            return None
        known = {
            name: losses / max(1, one.examples)
            for one in statistics.experts.values()
            for name, losses in one.neurons.items()
        }
        if not all(name in known and len(known[name]) == len(group.graph.remaining(name)) for name in group.units):
            return None
        return torch.stack([known[name][unit] for name, unit in group.chosen()]) / self._scale(statistics)

    def _by_magnitude(self, group: Group) -> torch.Tensor | None:
        """Scores units by magnitude. Those of experts share what their mixtures do to the outputs."""
        scores, statistics = GroupMagnitudeImportance()(group), self.statistics
        if scores is None or statistics is None or not self.additive:
            return scores
        weights = {name_of(view) for view in group.views()}
        mixtures = [one for one in statistics.experts.values() if one.effect is not None and weights & {*one.stacks}]
        if not mixtures:
            return scores
        effect = sum((one.effect or 0.0) / max(1, one.examples) for one in mixtures) / self._scale(statistics)
        units = sum(len(group.graph.remaining(name)) for name in group.units)
        return scores / (float(scores.mean()) or 1.0) * effect / units

    @property
    def additive(self) -> bool:
        """Whether scores are squared changes of the model's outputs, which add up."""
        return bool(self.wishes) and self.statistics is not None and "curvatures" in self.statistics

    def _scale(self, statistics: Statistics) -> float:
        """The mean effect of an output of any layer: ``G_cc E[y_c^2]``; 1 where there is none."""
        if self._typical is None or self._typical[0] is not statistics:
            self._typical = (statistics, typical_effect(statistics))
        return self._typical[1]

"""What the outputs of the model lose, to first order, if what layers put out for a unit becomes zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.plugin import Group, MemberView, Role, Statistics
from prunekit_plugins.importance.contributions import FromStatistics
from prunekit_plugins.importance.members import name_of
from prunekit_plugins.importance.reductions import Normalizer


class EffectImportance(FromStatistics):
    """Scores a unit by what the outputs of the model lose, to first order, if what layers put out for it becomes zero.

    For a layer that puts out ``y``, ``s[c] = G_cc E[y_c^2]`` with its curvature ``G``: the expected squared change of
    the model's outputs if ``y_c`` were zero, as if it were independent from sample to sample. It is a Taylor criterion
    (Molchanov et al., *Importance Estimation for Neural Network Pruning*, CVPR 2019) that needs no labels. For the dims
    of queries and keys, which are only multiplied with each other, the first order is all that there is.

    Args:
        statistics: What `calibrate` gathered, with curvatures; may be set later.
        group_reduction: How layers are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None.
        normalizer: A name, a callable on the scores, or None.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    needs: Sequence[str] = ("curvatures",)

    def __init__(
        self,
        statistics: Statistics | None = None,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
    ) -> None:
        super().__init__(statistics, group_reduction, normalizer)

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[layers, units]`` without reduction), float64; None
            when no layer that puts out the units was seen.

        Raises:
            ArgumentError: There are no statistics, they have no curvatures, or the model was pruned since.
        """
        members = self.seen(group, Role.OUT)
        return self.members.score(group, self.local, (type(self).__name__, id(self.statistics)), members=members)

    def local(self, view: MemberView) -> torch.Tensor | None:
        """Scores the positions of one layer.

        Returns:
            Tensor ``[positions]``.
        """
        assert self.statistics is not None
        total = None
        for seen in self.statistics.of(name_of(view)):
            if view.dim == (1 if seen.site.inputs_first else 0):
                effect = seen.effect
                places = seen.site.channels(view.dim).to(effect.device).flatten()
                part = effect.new_zeros(seen.site.shape[view.dim]).index_add_(0, places, effect.flatten())
                total = part if total is None else total + part
        return total


def typical_effect(statistics: Statistics) -> float:
    """Returns the mean effect of an output of any layer, ``G_cc E[y_c^2]``; 1 where there is none."""
    effects = [seen.effect for seen in statistics.sites.values() if seen.has_curvature]
    total = sum(float(effect.sum()) for effect in effects)
    return total / sum(effect.numel() for effect in effects) if total > 0 else 1.0

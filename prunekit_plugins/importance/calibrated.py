"""The criterion that is taken where there are calibration data and none was chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit_core import Group, Statistics
from prunekit_plugins.importance.contributions import ActivationVarianceImportance
from prunekit_plugins.importance.magnitude import GroupMagnitudeImportance
from prunekit_plugins.importance.reconstruction import ReconstructionImportance


class CalibratedImportance:
    """Scores a unit by what is lost if it goes and the units that stay make up for it as well as they can.

    That is `ReconstructionImportance`. With statistics that have no covariances it is how much the contribution of the
    unit varies, `ActivationVarianceImportance`; by magnitude where no consumer of the unit was seen. Dims of queries
    and keys have no consumer: they are only multiplied with each other. All scores are divided by their mean within the
    group, so that groups of either kind can be compared.

    Args:
        statistics: What `calibrate` gathered; may be set later (``prune(..., calibration=...)`` does).
    """

    needs: Sequence[str] = ("covariances",)
    otherwise: Sequence[str] = ("moments",)

    def __init__(self, statistics: Statistics | None = None) -> None:
        self.statistics = statistics

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection; None when no member counts.

        Raises:
            ArgumentError: There are no statistics, or the model was pruned since.
        """
        scores = None
        if self.statistics is not None and "covariances" in self.statistics:
            scores = ReconstructionImportance(self.statistics)(group)
        if scores is None:
            scores = ActivationVarianceImportance(self.statistics)(group)
        return GroupMagnitudeImportance()(group) if scores is None else scores

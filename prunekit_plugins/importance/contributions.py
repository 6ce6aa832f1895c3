"""Criteria from calibration statistics: what a unit contributes to what its consumers put out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.plugin import ArgumentError, Group, MemberView, Role, SiteStatistics, Statistics
from prunekit_plugins.importance.members import Members, name_of
from prunekit_plugins.importance.reductions import Normalizer


def check_statistics(criterion: object, statistics: Statistics | None) -> Statistics:
    """Returns the statistics of a criterion.

    Args:
        criterion: The criterion.
        statistics: What it holds.

    Raises:
        ArgumentError: It holds none.
    """
    if statistics is None:
        raise ArgumentError(
            "The criterion has no statistics.",
            where=type(criterion).__name__,
            hint="give calibration data: prune(..., calibration=batches), or in Python "
            "statistics=calibrate(model, batches)",
        )
    return statistics


class FromStatistics:
    """What criteria from statistics share: the consumers of a group, each with what it read.

    Args:
        statistics: What `calibrate` gathered; may be set later (``prune(..., calibration=...)`` does).
        group_reduction: How consumers are joined; see `Members`.
        normalizer: A name, a callable on the scores, or None.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    needs: Sequence[str] = ("moments",)

    def __init__(
        self,
        statistics: Statistics | None = None,
        group_reduction: str | None = "sum",
        normalizer: str | Normalizer | None = "mean",
    ) -> None:
        self.statistics = statistics
        self.members = Members(group_reduction, normalizer)

    def consumers(self, group: Group) -> list[MemberView]:
        """Lists the members of a group whose reads were seen; see `seen`."""
        return self.seen(group, Role.IN)

    def seen(self, group: Group, role: Role) -> list[MemberView]:
        """Lists the members of a group that have statistics.

        Args:
            group: The group.
            role: Whether they read the units or put them out.

        Raises:
            ArgumentError: There are no statistics, they lack what is needed, or the model was pruned since.
        """
        statistics = check_statistics(self, self.statistics)
        for part in self.needs:
            if part not in statistics:
                raise ArgumentError(
                    f"The statistics have no {part}.",
                    where=type(self).__name__,
                    hint=f"calibrate(model, batches, parts={[*self.needs]!r})",
                )
        found = [view for view in group.views() if view.role is role and statistics.of(name_of(view))]
        for view in found:
            if tuple(view.tensor.shape) != statistics.shapes[name_of(view)]:
                raise ArgumentError(
                    "The model was pruned since its statistics were gathered.",
                    where=name_of(view),
                    hint="calibrate anew",
                )
        return found

    def reads(self, view: MemberView) -> list[tuple[SiteStatistics, torch.Tensor]]:
        """Lists what was read through a member, each with the matrix ``[groups, outputs, features]``, float64."""
        return [(seen, weight.double()) for seen, weight in self.matrices(view)]

    def matrices(self, view: MemberView) -> list[tuple[SiteStatistics, torch.Tensor]]:
        """Lists the same with each matrix in the dtype of the weight."""
        assert self.statistics is not None
        found = []
        for seen in self.statistics.of(name_of(view)):
            if view.dim == (0 if seen.site.inputs_first else 1):
                found.append((seen, seen.site.matrix(view.values()).to(seen.moments.mean.device)))
        return found


class _Separable(FromStatistics):
    """Criteria that score each feature by itself and add up those of a unit."""

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[consumers, units]`` without reduction), float64; None
            when no consumer of the units was seen.

        Raises:
            ArgumentError: There are no statistics, they lack what is needed, or the model was pruned since.
        """
        members = self.consumers(group)
        return self.members.score(group, self.local, (type(self).__name__, id(self.statistics)), members=members)

    def local(self, view: MemberView) -> torch.Tensor | None:
        """Scores the positions of one consumer.

        Returns:
            Tensor ``[positions]``.
        """
        total = None
        for seen, weight in self.reads(view):
            part = seen.site.along(self.features(seen, weight), view.dim)
            total = part if total is None else total + part
        return total

    def features(self, seen: SiteStatistics, weight: torch.Tensor) -> torch.Tensor:
        """Scores the features of one consumer.

        Args:
            seen: What it read.
            weight: Its weight, tensor ``[groups, outputs, features]``.

        Returns:
            Tensor ``[groups, features]``.
        """
        raise NotImplementedError


class ActivationEnergyImportance(_Separable):
    """Scores a unit by the energy that it contributes to the outputs of its consumers.

    ``s[c] = sum_f E[x_f^2] ||W_f||^2`` over the features ``f`` of unit ``c``: the columns that it has in a consumer's
    weight. It is the expected squared change of the output if the unit goes and nothing makes up for it, but for
    correlations between the features of one unit.
    """

    def features(self, seen: SiteStatistics, weight: torch.Tensor) -> torch.Tensor:
        """``E[x_f^2] ||W_f||^2``."""
        return (seen.moments.variance + seen.moments.mean.square()) * weight.square().sum(1)


class ActivationVarianceImportance(_Separable):
    """Scores a unit by how much its contribution to the outputs of its consumers varies.

    ``s[c] = sum_f Var[x_f] ||W_f||^2`` (An et al., *Fluctuation-based Adaptive Structured Pruning*, AAAI 2024): what is
    lost if the unit goes and its mean is moved into the bias of the consumer, which `bias` compensation does.
    """

    def features(self, seen: SiteStatistics, weight: torch.Tensor) -> torch.Tensor:
        """``Var[x_f] ||W_f||^2``."""
        return seen.moments.variance * weight.square().sum(1)


class WandaImportance(_Separable):
    """Scores a unit by the sum of its weights' sizes times the norm of what they are multiplied by.

    ``s[c] = sum_f sum_o |W_of| sqrt(E[x_f^2])`` (Sun et al., *A Simple and Effective Pruning Approach for Large
    Language Models*, ICLR 2024, whose score of a single weight is added up over the unit).
    """

    def features(self, seen: SiteStatistics, weight: torch.Tensor) -> torch.Tensor:
        """``sum_o |W_of| sqrt(E[x_f^2])``."""
        return (seen.moments.variance + seen.moments.mean.square()).sqrt() * weight.abs().sum(1)

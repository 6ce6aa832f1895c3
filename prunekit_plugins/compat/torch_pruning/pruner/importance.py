"""Criteria: those of ``prunekit_plugins.importance``, with the base classes that programs subclass."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.plugin import ArgumentError
from prunekit_plugins import importance
from prunekit_plugins.compat.torch_pruning import ops
from prunekit_plugins.compat.torch_pruning.dependency.group import Group
from prunekit_plugins.compat.torch_pruning.pruner import function
from prunekit_plugins.compat.torch_pruning.unavailable import refuse
from prunekit_plugins.compat.torch_pruning.utils.compute_mat_grad import ComputeMatGrad
from prunekit_plugins.importance.members import Members
from prunekit_plugins.importance.reductions import find_normalizer, reduce_members

__all__ = [
    "ActivationImportance",
    "BNScaleImportance",
    "ComputeMatGrad",
    "FPGMImportance",
    "Group",
    "GroupHessianImportance",
    "GroupMagnitudeImportance",
    "GroupNormImportance",
    "GroupTaylorImportance",
    "HessianImportance",
    "Importance",
    "LAMPImportance",
    "MagnitudeImportance",
    "OBDCImportance",
    "RandomImportance",
    "TaylorImportance",
    "function",
    "ops",
]

_MATRICES = (ops.TORCH_CONV, ops.TORCH_LINEAR)
_TYPES = (*_MATRICES, ops.TORCH_BATCHNORM, ops.TORCH_LAYERNORM)


class Importance(abc.ABC):
    """A criterion: called with a group, it returns one score per channel of the root layer, or one per unit."""

    @abc.abstractmethod
    def __call__(self, group: Any) -> torch.Tensor | None:
        """Scores a group; None when it has nothing to say about it."""


class RandomImportance(importance.RandomImportance, Importance):
    """Uniform scores."""

    def __call__(self, group: Any, **kwargs: Any) -> torch.Tensor:
        """Scores a group."""
        return super().__call__(group)


class _Members(Importance):
    """What criteria that join the scores of members have in common."""

    members: Any

    @property
    def group_reduction(self) -> str | None:
        """How members are joined."""
        reduction: str | None = self.members.group_reduction
        return reduction

    @property
    def normalizer(self) -> Any:
        """What is done with the joined scores."""
        return self.members.normalizer

    @property
    def bias(self) -> bool:
        """Whether biases count."""
        return bool(self.members.bias)

    @property
    def target_types(self) -> list[type[nn.Module]]:
        """Layer types that count."""
        return list(self.members.target_types)

    def _reduce(self, group_imp: Sequence[torch.Tensor], group_idxs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Joins members' scores, each given with the channel of the root that every score belongs to.

        Args:
            group_imp: Per member, tensor ``[positions]``.
            group_idxs: Per member, one channel per position; the first member's are the channels of the result.

        Returns:
            Tensor ``[channels]``.
        """
        channels = {channel: place for place, channel in enumerate(dict.fromkeys(map(int, group_idxs[0])))}
        totals, covered = [], []
        for scores, owners in zip(group_imp, group_idxs, strict=True):
            known = [(at, channels[int(channel)]) for at, channel in enumerate(owners) if int(channel) in channels]
            places = torch.tensor([place for _, place in known], dtype=torch.long, device=scores.device)
            total = scores.new_zeros(len(channels))
            totals.append(total.index_add_(0, places, scores[[at for at, _ in known]]))
            covered.append(torch.zeros(len(channels), dtype=torch.bool).index_fill_(0, places.cpu(), True))
        return reduce_members(totals, covered, self.group_reduction)

    def _normalize(self, group_importance: torch.Tensor, normalizer: Any) -> torch.Tensor:
        """Normalises scores by name or callable."""
        return find_normalizer(normalizer)(group_importance)

    def _lamp(self, scores: torch.Tensor) -> torch.Tensor:
        """Normalises scores as LAMP does."""
        return find_normalizer("lamp")(scores)


class _WithoutDepthwise(Members):
    """Members as Torch-Pruning counts them: a depthwise convolution, which has one filter per channel, doesn't."""

    def of(self, group: pk.Group, views: Sequence[plugin.MemberView] | None = None) -> list[plugin.MemberView]:
        """Lists the members that count."""
        return [view for view in super().of(group, views) if not ops.is_depthwise(view.module)]


class GroupMagnitudeImportance(importance.GroupMagnitudeImportance, _Members):
    """Magnitudes; see ``prunekit_plugins.importance.GroupMagnitudeImportance``. Depthwise convolutions don't count."""

    def __init__(
        self,
        p: float = 2,
        group_reduction: str | None = "mean",
        normalizer: Any = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = _TYPES,
    ) -> None:
        super().__init__(p, group_reduction, normalizer, bias, target_types)
        self.members = _WithoutDepthwise(group_reduction, normalizer, bias, target_types)


class MagnitudeImportance(GroupMagnitudeImportance):
    """`GroupMagnitudeImportance` under its other name."""


GroupNormImportance = GroupMagnitudeImportance
"""The name up to Torch-Pruning 1.5."""


class BNScaleImportance(GroupMagnitudeImportance):
    """Scales of batch norms; see ``prunekit_plugins.importance.BNScaleImportance``."""

    def __init__(self, group_reduction: str | None = "mean", normalizer: Any = "mean") -> None:
        super().__init__(1, group_reduction, normalizer, False, [ops.TORCH_BATCHNORM])


class LAMPImportance(GroupMagnitudeImportance):
    """Layer-adaptive magnitudes; see ``prunekit_plugins.importance.LAMPImportance``."""

    def __init__(
        self, p: float = 2, group_reduction: str | None = "mean", normalizer: Any = "lamp", bias: bool = False
    ) -> None:
        super().__init__(p, group_reduction, normalizer, bias)


class FPGMImportance(importance.FPGMImportance, GroupMagnitudeImportance):
    """Distances between filters; see ``prunekit_plugins.importance.FPGMImportance``. Depthwise ones don't count."""

    def __init__(
        self, p: float = 2, group_reduction: str | None = "mean", normalizer: Any = "mean", bias: bool = False
    ) -> None:
        importance.FPGMImportance.__init__(self, p, group_reduction, normalizer, bias)
        self.members = _WithoutDepthwise(group_reduction, normalizer, bias, _MATRICES)

    def __call__(self, group: Any, **kwargs: Any) -> torch.Tensor | None:
        """Scores a group."""
        return super().__call__(group)


class GroupTaylorImportance(importance.GroupTaylorImportance, GroupMagnitudeImportance):
    """See ``prunekit_plugins.importance.GroupTaylorImportance``. Depthwise convolutions don't count."""

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: Any = "mean",
        multivariable: bool = False,
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = _TYPES,
    ) -> None:
        importance.GroupTaylorImportance.__init__(self, group_reduction, normalizer, multivariable, bias, target_types)
        self.members = _WithoutDepthwise(group_reduction, normalizer, bias, target_types)


class TaylorImportance(GroupTaylorImportance):
    """`GroupTaylorImportance` under its other name."""


class GroupHessianImportance(importance.GroupHessianImportance, GroupMagnitudeImportance):
    """See ``prunekit_plugins.importance.GroupHessianImportance``. Depthwise convolutions don't count."""

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: Any = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = _TYPES,
    ) -> None:
        importance.GroupHessianImportance.__init__(self, group_reduction, normalizer, bias, target_types)
        self.members = _WithoutDepthwise(group_reduction, normalizer, bias, target_types)


class HessianImportance(GroupHessianImportance):
    """`GroupHessianImportance` under its other name."""


class ActivationImportance(importance.ActivationImportance, GroupMagnitudeImportance):  # type: ignore[misc]
    """Mean absolute inputs of consumers; see ``prunekit_plugins.importance.ActivationImportance``.

    Args:
        p: Has no meaning for activations, in Torch-Pruning neither.
        group_reduction: How members are joined.
        normalizer: What is done with the joined scores.
        bias: Has no meaning for activations, in Torch-Pruning neither.
        target_types: Layer types that count.
    """

    def __init__(
        self,
        p: float = 2,
        group_reduction: str | None = "mean",
        normalizer: Any = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = _TYPES,
    ) -> None:
        importance.ActivationImportance.__init__(self, group_reduction, normalizer, target_types)


class OBDCImportance(importance.OBDCImportance, GroupMagnitudeImportance):  # type: ignore[misc]
    """Curvature from activations and output gradients; see ``prunekit_plugins.importance.OBDCImportance``.

    Args:
        group_reduction: How members are joined.
        normalizer: What is done with the joined scores.
        bias: Whether biases count.
        target_types: Layer types that count.
        num_classes: Not needed: the batch is read off the inputs.
    """

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: Any = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = _MATRICES,
        num_classes: int = 100,
    ) -> None:
        if num_classes < 1:
            raise ArgumentError("num_classes must be positive.", why=f"got {num_classes!r}")
        importance.OBDCImportance.__init__(self, group_reduction, normalizer, bias, target_types, num_classes)
        self.num_classes = num_classes

    def adjust_fisher(self, group: Any, idxs: Any) -> None:
        """Raises `UnavailableError`."""
        raise refuse(
            "OBDCImportance.adjust_fisher",
            "statistics of channels that are gone can't be told from those of the smaller model",
            "gather statistics anew after each cut: _prepare_model, backward and step, _rm_hooks",
        )

"""Activation: how strong the signal of a unit is where it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.plugin import ArgumentError, Group, MemberView, Role
from prunekit_plugins.importance.members import (
    ATTENTION,
    CONVOLUTIONS_AND_LINEAR,
    Members,
    name_of,
    sums_over_slices,
    wide,
)
from prunekit_plugins.importance.reductions import Normalizer
from prunekit_plugins.importance.watching import (
    Arguments,
    Hooks,
    Total,
    channel_dim,
    gathered_everywhere,
    read_tensors,
    weight_of,
)
from prunekit_plugins.layers.attention import convert


class ActivationImportance:
    """Scores a unit by the mean absolute value with which the layers that consume it read it.

    Each consumer scores ``s[c] = mean |x_c|``: the mean over all samples, positions and batches of the input channel of
    unit ``c``. Inputs are watched while batches run::

        with criterion.compute_importance(model):
            for x in batches:
                model(x)

    A layer that runs several times in a pass counts all its inputs. Several batches weigh by their sizes. A layer whose
    weight the model uses without calling it can't be watched and doesn't count.

    Args:
        group_reduction: How consumers are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None
            for the stack ``[consumers, units]``.
        normalizer: A name, a callable on the scores, or None; see `GroupMagnitudeImportance`.
        target_types: Layer types that count: convolutions and linear layers. Attention modules count as linear layers.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        target_types: Sequence[type[nn.Module]] = CONVOLUTIONS_AND_LINEAR,
    ) -> None:
        self.members = Members(group_reduction, normalizer, False, target_types)
        # by weight: per input channel the sum of absolute values, and how many values that was
        self._sums: dict[torch.Tensor, tuple[torch.Tensor, int]] = {}

    @contextlib.contextmanager
    def compute_importance(self, model: nn.Module) -> Iterator[None]:
        """Watches all batches that run inside; what was seen before is forgotten. The hooks go in any case.

        Args:
            model: The model, in the mode that it is used in. Gradients are not needed.
        """
        self._sums.clear()
        hooks = Hooks()
        try:
            for module in model.modules():
                if isinstance(module, (*CONVOLUTIONS_AND_LINEAR, *ATTENTION)):
                    hooks.before(module, self._watch)
            yield
        finally:
            hooks.remove()

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        with torch.no_grad():
            for argument, values in read_tensors(module, args, kwargs).items():
                dim = channel_dim(module, values)
                sums, count = sums_over_slices(wide(values.detach()).abs(), dim), values.numel() // values.shape[dim]
                weight = weight_of(module, argument)
                known = self._sums.get(weight)
                self._sums[weight] = (sums, count) if known is None else (known[0] + sums, known[1] + count)
            if isinstance(module, nn.MultiheadAttention):
                self._watch_inside(module, args, kwargs)
        return None

    def _watch_inside(self, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs the equivalent, which calls the output projection as a layer, so that its hook runs."""
        equivalent = convert(module)
        if equivalent is not None:
            equivalent.training = False  # draws no random numbers; only the equivalent's own flag, the parts are shared
            equivalent(*args, **kwargs)

    def reduce(self, model: nn.Module, total: Total) -> None:
        """Adds up what several processes saw, each of other batches.

        Args:
            model: The model.
            total: Returns the sum of a tensor over all processes.

        Raises:
            ArgumentError: Different layers ran on the processes.
        """
        found = gathered_everywhere(list(model.parameters()), self._sums, total, type(self).__name__)
        self._sums = {
            weight: (total(sums), int(total(torch.tensor(count, device="cpu"))))
            for weight, (sums, count) in ((weight, self._sums[weight]) for weight in found)
        }

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[consumers, units]`` without reduction), float32 or
            wider; None when no layer that ran consumes the units.

        Raises:
            ArgumentError: No batch was seen, or the model was pruned since.
        """
        members = [view for view in self.members.of(group) if view.role is Role.IN]
        if members and not self._sums:
            raise ArgumentError(
                "No activations were seen.",
                where=", ".join(dict.fromkeys(map(name_of, members))),
                hint="run batches inside `with criterion.compute_importance(model):`",
            )
        return self.members.score(group, self.local, ("activation", id(self)), members=members)

    def local(self, view: MemberView) -> torch.Tensor | None:
        """Scores the positions of one consumer.

        Returns:
            Tensor ``[positions]``; None when it didn't run.
        """
        if view.tensor not in self._sums:
            return None
        sums, count = self._sums[view.tensor]
        means = sums / max(1, count)
        conv = view.module
        if isinstance(conv, nn.modules.conv._ConvNd) and not conv.transposed:
            means = means.reshape(conv.groups, -1).sum(0)  # a column of the weight reads one channel of every group
        if len(means) != view.tensor.shape[view.dim]:
            raise ArgumentError(
                "The model was pruned since its activations were seen.",
                where=name_of(view),
                hint="score all groups before the first is pruned, or run the batches anew",
            )
        return means

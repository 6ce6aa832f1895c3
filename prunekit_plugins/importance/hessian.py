"""Hessian: how much the loss changes, to second order, when a unit goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunekit.plugin import ArgumentError, Group, MemberView, whole_tensor
from prunekit_plugins.importance.members import TARGET_TYPES, Members, name_of, sums_over_slices, wide
from prunekit_plugins.importance.reductions import Normalizer
from prunekit_plugins.importance.watching import Total, gathered_everywhere


class GroupHessianImportance:
    """Scores a unit by the second-order change of the loss without it (LeCun et al., Optimal Brain Damage, 1989).

    Each member scores ``s[c] = sum w^2 * h`` over the slice of unit ``c``. ``h`` is the diagonal of the empirical
    Fisher matrix, which stands for that of the Hessian: the mean over samples of the squared gradient of a sample's
    loss. Gradients are given sample by sample::

        criterion.zero_grad()
        for loss in cross_entropy(model(x), y, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            criterion.accumulate_grad(model)

    Args:
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None for
            the stack ``[members, units]``.
        normalizer: A name, a callable on the scores, or None; see `GroupMagnitudeImportance`.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count. Attention modules count as linear layers.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = TARGET_TYPES,
    ) -> None:
        self.members = Members(group_reduction, normalizer, bias, target_types)
        # tensors hash by identity, so a parameter finds its sums again, also after it was moved to another module
        self._squares: dict[torch.Tensor, torch.Tensor] = {}
        self._samples = 0

    def zero_grad(self) -> None:
        """Forgets all samples; gradients of parameters are not touched."""
        self._squares.clear()
        self._samples = 0

    def accumulate_grad(self, model: nn.Module) -> None:
        """Takes in the gradients of one sample; call it after that sample's ``backward``.

        Gradients that other samples left in ``.grad`` would be counted again: call ``model.zero_grad()`` before each
        ``backward``. Nothing of the model is changed. A parameter without a gradient counts as one whose gradient is 0
        for this sample.

        Args:
            model: The model.

        Raises:
            ArgumentError: No parameter has a gradient, or the model was pruned since the first sample.
        """
        found = {parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None}
        if not found:
            raise ArgumentError(
                "No parameter of the model has a gradient.",
                where=type(model).__name__,
                hint="call loss.backward() with the loss of one sample first",
            )
        with torch.no_grad():
            for parameter, gradient in found.items():
                square = wide(gradient.to_dense() if gradient.is_sparse else gradient).square()
                known = self._squares.get(parameter)
                if known is None:
                    self._squares[parameter] = square
                elif known.shape == square.shape:
                    known.add_(square)
                else:
                    raise _changed(type(model).__name__)
        self._samples += 1

    def reduce(self, model: nn.Module, total: Total) -> None:
        """Adds up what several processes took in, each of other samples.

        Args:
            model: The model.
            total: Returns the sum of a tensor over all processes.

        Raises:
            ArgumentError: The processes have gradients of different parameters.
        """
        found = gathered_everywhere(list(model.parameters()), self._squares, total, type(self).__name__)
        self._squares = {parameter: total(self._squares[parameter]) for parameter in found}
        self._samples = int(total(torch.tensor(self._samples, device="cpu")))

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.

        Raises:
            ArgumentError: Members that count have no gradients taken in; the message names their parameters.
        """
        members = self.members.of(group)
        missing = [view for view in members if view.tensor not in self._squares]
        if missing:
            raise ArgumentError(
                "No gradients were taken in for some parameters.",
                where=", ".join(dict.fromkeys(map(name_of, missing))),
                why=f"{self._samples} samples were taken in",
                hint="for each sample, call backward on its loss and then accumulate_grad(model)",
            )
        return self.members.score(group, self.local, ("hessian", id(self), self._samples), members=members)

    def local(self, view: MemberView) -> torch.Tensor:
        """Scores the positions of one member.

        Returns:
            Tensor ``[positions]``.
        """
        squares = self._squares[view.tensor]
        if squares.shape != view.tensor.shape:
            raise _changed(name_of(view))
        return sums_over_slices(wide(view.values()).square() * whole_tensor(squares), view.dim) / self._samples


def _changed(where: str) -> ArgumentError:
    return ArgumentError(
        "The model was pruned since its gradients were taken in.",
        where=where,
        hint="score all groups before the first is pruned, or call zero_grad() and take the samples in anew",
    )

"""OBD-C: the second-order change of the loss without a unit, from a Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import ArgumentError, Group, MemberView
from prunekit_plugins.importance.members import CONVOLUTIONS_AND_LINEAR, Members, name_of, sums_over_slices, wide
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
from prunekit_plugins.layers import PrunableMultiheadAttention

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_Key = tuple[torch.Tensor, bool]
"""A weight, and whether it is about what the layer reads (False: what it gives back)."""


@attrs.frozen(eq=False)
class _Moments:
    """Sums of squared values and of squared gradients per channel, and over how many samples and positions."""

    values: torch.Tensor
    gradients: torch.Tensor
    count: int

    def plus(self, other: _Moments, scale: float) -> _Moments:
        if self.values.shape != other.values.shape:
            raise _changed("")
        return _Moments(self.values + other.values, self.gradients + other.gradients * scale, self.count + other.count)


class OBDCImportance:
    """Scores a unit by the second-order change of the loss without it (Wang et al., EigenDamage, ICML 2019).

    For a layer ``z = W a`` with Kronecker-factored curvature ``F = A (x) S``, ``A = E[a a^T]``, ``S = E[g g^T]``,
    ``g = dL/dz``, the loss changes by ``1/2 vec(W_c)^T F vec(W_c)`` when the slice ``W_c`` goes, which is

    - for a row, ``s[c] = T/2 * S_cc * w_c^T A w_c = T/2 * E[g_c^2] * E[z_c^2]`` (Kron-OBD of the paper);
    - for a column, ``s[c] = T/2 * A_cc * w_c^T S w_c = T/2 * E[a_c^2] * E[(dL/da_c)^2]``.

    So no matrix is formed: channel-wise second moments of what a layer reads and gives back, and of their gradients,
    are enough. ``T`` is the number of positions that share the weight (places of a convolution, tokens); moments are
    over samples and positions, which are taken to be independent (Grosse and Martens, ICML 2016). Of a convolution,
    ``z`` is the output without the bias, ``a_c`` an input channel and ``dL/da_c`` the gradient that comes back to it
    through this layer alone. Norm layers score as rows with one weight each; a bias scores ``T/2 * b_c^2 * E[g_c^2]``.
    Several occurrences of a unit add up.

    Statistics are gathered batch by batch; the loss is the mean over the batch, and samples lie along the first dim of
    the model's first input. For the curvature of the paper, labels are drawn from the model's own predictions::

        criterion.prepare_model(model)
        for x in batches:
            logits = model(x)
            labels = torch.multinomial(logits.detach().softmax(1), 1).squeeze(1)
            cross_entropy(logits, labels).backward()
            criterion.step()
        criterion.rm_hooks(model)

    Args:
        group_reduction: How members are joined: ``mean``, ``sum``, ``max``, ``prod``, ``first``, ``gate``, or None for
            the stack ``[members, units]``.
        normalizer: A name, a callable on the scores, or None; see `GroupMagnitudeImportance`.
        bias: Whether biases along the units count as members of their own.
        target_types: Layer types that count: convolutions, linear layers, norms. Attention modules count as linear
            layers, except for the rows of their input projection. A layer whose weight the model uses without calling
            it can't be watched and doesn't count.
        num_classes: Accepted because Torch-Pruning asks for it; nothing depends on it.

    Raises:
        ArgumentError: The reduction or the normalizer is unknown.
    """

    def __init__(
        self,
        group_reduction: str | None = "mean",
        normalizer: str | Normalizer | None = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] = CONVOLUTIONS_AND_LINEAR,
        num_classes: int | None = None,
    ) -> None:
        self.members = Members(group_reduction, normalizer, bias, target_types)
        self._hooks = Hooks()
        self._totals: dict[_Key, _Moments] = {}
        self._pending: list[tuple[_Key, _Moments]] = []
        self._samples = 0
        self._batch: int | None = None

    # -- gathering

    def prepare_model(self, model: nn.Module, pruner: object = None) -> None:
        """Hooks into a model, and forgets what was gathered before.

        Args:
            model: The model.
            pruner: Not needed; programs written for Torch-Pruning give it.
        """
        self.rm_hooks()
        self.clear_buffer()
        self._hooks.before(model, self._see_batch)
        for module in model.modules():
            if isinstance(module, (*CONVOLUTIONS_AND_LINEAR, nn.MultiheadAttention)):
                self._hooks.before(module, self._see_inputs)
                self._hooks.after(module, self._see_output)
            elif isinstance(module, _NORMS) and module.weight is not None:
                self._hooks.after(module, self._see_output)

    def step(self) -> None:
        """Takes in one batch; call it after ``backward``. Gradients of parameters are neither read nor changed.

        Raises:
            ArgumentError: No backward ran since the last batch, or the model was pruned since the first one.
        """
        if not self._pending:
            raise ArgumentError(
                "No gradient has come back through the model.",
                hint="call prepare_model(model), then for each batch loss.backward() and step()",
            )
        batch = self._batch or 1
        for key, moments in self._pending:
            known = self._totals.get(key) or _Moments(
                torch.zeros_like(moments.values), torch.zeros_like(moments.gradients), 0
            )
            # the loss is a mean over the batch, so each sample's own gradient is that many times larger
            self._totals[key] = known.plus(moments, batch**2)
        self._samples += batch
        self._pending.clear()
        self._batch = None

    def reduce(self, model: nn.Module, total: Total) -> None:
        """Adds up what several processes gathered, each from other batches.

        Args:
            model: The model.
            total: Returns the sum of a tensor over all processes.

        Raises:
            ArgumentError: Different layers ran on the processes.
        """
        keys = [(weight, reads) for weight in model.parameters() for reads in (False, True)]
        for key in gathered_everywhere(keys, self._totals, total, type(self).__name__):
            own = self._totals[key]
            count = int(total(torch.tensor(own.count, device="cpu")))
            self._totals[key] = _Moments(total(own.values), total(own.gradients), count)
        self._samples = int(total(torch.tensor(self._samples, device="cpu")))

    def rm_hooks(self, model: nn.Module | None = None) -> None:
        """Removes all hooks; may be called at any time, also twice. What was gathered stays.

        Args:
            model: Not needed; programs written for Torch-Pruning give it.
        """
        self._hooks.remove()
        self._pending.clear()
        self._batch = None

    def clear_buffer(self) -> None:
        """Forgets what was gathered."""
        self._totals.clear()
        self._pending.clear()
        self._samples, self._batch = 0, None

    # under these names programs written for Torch-Pruning call them
    _prepare_model = prepare_model
    _rm_hooks = rm_hooks
    _clear_buffer = clear_buffer

    def _see_batch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        if torch.is_grad_enabled() and first is not None and first.dim():
            self._batch = len(first)

    def _see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Passes the inputs on under other names, whose gradients are those that come back through this layer alone."""
        found = read_tensors(module, args, kwargs)
        if not torch.is_grad_enabled() or not found:
            return None
        renamed: dict[int, torch.Tensor] = {}
        for argument, values in found.items():
            if id(values) in renamed:
                continue  # one tensor stays one tensor: attention modules look at that
            if self._batch is None:
                self._batch = len(values)
            own = values.view_as(values) if values.requires_grad else values.detach().requires_grad_()
            renamed[id(values)] = own
            self._follow((weight_of(module, argument), True), values, own, (channel_dim(module, values),))
        return (
            tuple(renamed.get(id(value), value) for value in args),
            {name: renamed.get(id(value), value) for name, value in kwargs.items()},
        )

    def _see_output(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, PrunableMultiheadAttention):
            return  # it calls its output projection as a layer, which is seen by itself
        if isinstance(module, nn.MultiheadAttention):
            module, output = module.out_proj, output[0]
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        last = channel_dim(module, output)
        dims = tuple(range(output.dim() - weight.dim(), output.dim())) if _over_last(module) else (last,)
        bias = getattr(module, "bias", None)
        products = output.detach()
        if bias is not None:
            shape = [size if dim in dims else 1 for dim, size in enumerate(output.shape)]
            products = products - bias.detach().reshape(shape)
        self._follow((weight, False), products, output, dims)

    def _follow(self, key: _Key, values: torch.Tensor, through: torch.Tensor, dims: tuple[int, ...]) -> None:
        """Notes the second moments of some values once the gradient of a tensor comes back."""
        others = [dim for dim in range(values.dim()) if dim not in dims]

        def squares(tensor: torch.Tensor) -> torch.Tensor:
            squared = wide(tensor.detach()).square()
            return squared.sum(others) if others else squared

        with torch.no_grad():
            summed = squares(values)
        count = values.numel() // max(1, summed.numel())

        def come_back(gradient: torch.Tensor) -> None:
            with torch.no_grad():
                self._pending.append((key, _Moments(summed, squares(gradient), count)))

        through.register_hook(come_back)

    # -- scoring

    def __call__(self, group: Group) -> torch.Tensor | None:
        """Scores the selected units of a group.

        Returns:
            Tensor ``[units]`` in the order of the selection (``[members, units]`` without reduction), float32 or
            wider; None when no member counts.

        Raises:
            ArgumentError: Nothing was gathered, or the model was pruned since.
        """
        members = self.members.of(group)
        if members and not self._totals:
            raise ArgumentError(
                "No curvature was gathered.",
                where=", ".join(dict.fromkeys(map(name_of, members))),
                hint="call prepare_model(model), then for each batch loss.backward() and step()",
            )
        return self.members.score(group, self.local, ("obdc", id(self), self._samples), members=members)

    def local(self, view: MemberView) -> torch.Tensor | None:
        """Scores the positions of one member.

        Returns:
            Tensor ``[positions]``; None when the layer didn't run.
        """
        module = view.module
        bias = view.name.endswith("bias")
        reads = not bias and _reads(module, view.dim)
        weight = getattr(module, "weight", None) if bias else view.tensor
        moments = self._totals.get((weight, reads)) if weight is not None else None
        if moments is None:
            return None
        values = moments.values / moments.count
        if bias:
            values = wide(view.values()).square()
            if values.shape != moments.gradients.shape:
                raise _changed(name_of(view))
        scores = values * moments.gradients / (2 * self._samples)
        if scores.dim() > 1:
            scores = sums_over_slices(scores, view.dim)
        if isinstance(module, nn.modules.conv._ConvNd) and view.dim == 1:
            scores = scores.reshape(module.groups, -1).sum(0)  # a position of dim 1 is one channel of every group
        if len(scores) != view.tensor.shape[view.dim]:
            raise _changed(name_of(view))
        return scores


def _over_last(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.RMSNorm)


def _reads(module: nn.Module, dim: int) -> bool:
    """Tells whether a dim of a layer's weight is about what the layer reads."""
    if isinstance(module, _NORMS):
        return False
    transposed = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
    return dim == 0 if transposed else dim == 1


def _changed(where: str) -> ArgumentError:
    return ArgumentError(
        "The model was pruned since its curvature was gathered.",
        where=where,
        hint="score all groups before the first is pruned, or call prepare_model(model) and gather anew",
    )

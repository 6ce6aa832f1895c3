"""Pruners that train the model sparse before they cut it: the base pruner with a regularizer beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.plugin import ArgumentError, BasePruner, Group
from prunekit_plugins.regularizers import BNScaleRegularizer, GroupNormRegularizer, GrowingRegularizer
from prunekit_plugins.regularizers.arguments import check_strength

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from prunekit_plugins.classic.options import PrunerOptions

Importance = Callable[[Group], "torch.Tensor | None"] | str


def prunable_groups(pruner: BasePruner) -> list[Group]:
    """Lists the groups that a pruner may take units from, as they are now; those with ratio 0 are left out."""
    names = dict.fromkeys(name for scope in pruner.scopes() if scope.ratio > 0 for name in scope.groups)
    return [pruner.graph.whole_group(name) for name in names]


def unwrapped(model: object) -> object:
    """Returns the module inside of wrappers that only forward to it: ``torch.compile``, DataParallel, DDP."""
    while isinstance(model, nn.Module):
        children = dict(model.named_children())
        if "_orig_mod" in children:  # what torch.compile returns
            model = children["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    return model


def _check_model(pruner: BasePruner, model: object) -> None:
    if unwrapped(model) is not pruner.graph.model:
        raise ArgumentError(
            "The model is not the one that the pruner was made for.",
            where=type(model).__name__,
            hint="pass the same module, or a wrapper around it; a copy needs a pruner of its own",
        )


class GroupNormPruner(BasePruner):
    """`BasePruner` with group-norm sparse training (Fang et al., DepGraph, CVPR 2023).

    Call `regularize` in every training step, between ``loss.backward()`` and ``optimizer.step()``; after the training,
    `step`. Only groups that may lose units are shrunk.

    Args:
        model: The model.
        example_inputs: As for `BasePruner`.
        importance: As for `BasePruner`; the norms that decide about the shrinking agree with ``"magnitude"``.
        reg: Strength.
        alpha: The weakest unit of a group shrinks ``2^alpha`` times as fast as the strongest.
        options: All other arguments of `BasePruner`.

    Attributes:
        regularizer: The `GroupNormRegularizer`.

    Raises:
        ArgumentError: An argument is wrong, or no group may lose units.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Importance = "magnitude",
        reg: float = 1e-4,
        alpha: float = 4.0,
        **options: Unpack[PrunerOptions],
    ) -> None:
        check_strength(reg, "reg")
        check_strength(alpha, "alpha")
        super().__init__(model, example_inputs, importance, **options)
        self.regularizer = GroupNormRegularizer(functools.partial(prunable_groups, self), reg, alpha)

    def update_regularizer(self) -> None:
        """Takes the groups as they are now; `regularize` does it by itself when sizes have changed."""
        self.regularizer.refresh()

    def regularize(self, model: nn.Module, alpha: float | None = None, bias: bool = False) -> None:
        """Adds ``reg * gamma_c * w`` to the gradients.

        Args:
            model: The model of the pruner, or a wrapper (``torch.compile``, DDP) around it.
            alpha: Overrides the alpha of the constructor.
            bias: Whether biases are shrunk, too.

        Raises:
            ArgumentError: It is another model, or no parameter has a gradient; nothing was changed.
        """
        _check_model(self, model)
        self.regularizer.regularize(alpha, bias)


class GrowingRegPruner(BasePruner):
    """`BasePruner` with growing regularization (Wang et al., ICLR 2021).

    Call `regularize` in every training step, between ``loss.backward()`` and ``optimizer.step()``, and `update_reg`
    every so many steps, or once per epoch; after the training, `step`.

    Args:
        model: The model.
        example_inputs: As for `BasePruner`.
        importance: As for `BasePruner`; it also decides where the regularization grows.
        reg: The coefficients at the start.
        delta_reg: How much the coefficients of the worst units grow with each `update_reg`.
        options: All other arguments of `BasePruner`.

    Attributes:
        regularizer: The `GrowingRegularizer`; ``regularizer.group_reg`` are its coefficients.

    Raises:
        ArgumentError: An argument is wrong, or no group may lose units.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Importance = "magnitude",
        reg: float = 1e-5,
        delta_reg: float = 1e-5,
        **options: Unpack[PrunerOptions],
    ) -> None:
        check_strength(reg, "reg")
        check_strength(delta_reg, "delta_reg")
        super().__init__(model, example_inputs, importance, **options)
        self.regularizer = GrowingRegularizer(
            functools.partial(prunable_groups, self), reg, delta_reg, importance=lambda group: self.score(group.name)
        )

    def update_regularizer(self) -> None:
        """Takes the groups as they are now and sets all coefficients back to ``reg``; call it after each `step`.

        `regularize` and `update_reg` do it by themselves when sizes have changed.
        """
        self.regularizer.refresh()

    def update_reg(self) -> None:
        """Lets the coefficients grow by ``delta_reg * (max I - I_c) / (max I - min I)``."""
        self.regularizer.grow()

    def regularize(self, model: nn.Module, bias: bool = False) -> None:
        """Adds ``lambda_c * w`` to the gradients.

        Args:
            model: The model of the pruner, or a wrapper (``torch.compile``, DDP) around it.
            bias: Whether biases are shrunk, too.

        Raises:
            ArgumentError: It is another model, or no parameter has a gradient; nothing was changed.
        """
        _check_model(self, model)
        self.regularizer.regularize(bias)


class BNScalePruner(BasePruner):
    """`BasePruner` with an L1 penalty on the scales of BatchNorms (Liu et al., Network Slimming, ICCV 2017).

    Call `regularize` in every training step, between ``loss.backward()`` and ``optimizer.step()``; after the training,
    `step`. Only BatchNorms along groups that may lose units are penalised.

    Args:
        model: The model.
        example_inputs: As for `BasePruner`.
        importance: As for `BasePruner`.
        reg: Strength.
        group_lasso: Whether the scales of a unit in all BatchNorms of its group are penalised together.
        options: All other arguments of `BasePruner`.

    Attributes:
        regularizer: The `BNScaleRegularizer`.

    Raises:
        ArgumentError: An argument is wrong, or no group that may lose units has a BatchNorm.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Importance = "magnitude",
        reg: float = 1e-5,
        group_lasso: bool = False,
        **options: Unpack[PrunerOptions],
    ) -> None:
        check_strength(reg, "reg")
        super().__init__(model, example_inputs, importance, **options)
        self.regularizer = BNScaleRegularizer(functools.partial(prunable_groups, self), reg, group_lasso)

    def update_regularizer(self) -> None:
        """Takes the groups as they are now; `regularize` does it by itself when sizes have changed."""
        self.regularizer.refresh()

    def regularize(self, model: nn.Module, reg: float | None = None, bias: bool = False) -> None:
        """Adds ``reg * sign(gamma)``, or ``reg * gamma / ||gamma_c||`` with ``group_lasso``, to the gradients.

        Args:
            model: The model of the pruner, or a wrapper (``torch.compile``, DDP) around it.
            reg: Overrides the strength of the constructor.
            bias: Whether the shifts of the BatchNorms are penalised, too.

        Raises:
            ArgumentError: It is another model, or no BatchNorm has a gradient; nothing was changed.
        """
        _check_model(self, model)
        self.regularizer.regularize(reg, bias)

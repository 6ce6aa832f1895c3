"""What a model holds at one moment, to find what was changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.torch_private.objects import hooks_of


@attrs.frozen(eq=False)
class State:
    """Copies of a model's tensors and gradients, its flags, and the state of PyTorch's default generator.

    Attributes:
        tensors: Parameters and buffers by dotted name.
        gradients: Gradients by the dotted name of their parameter; None where there is none.
        learning: ``requires_grad`` by the dotted name of the parameter.
        training: The mode by the dotted path of the module.
        hooks: What runs around the module's forward and backward, by the dotted path of the module.
        random: The state of the default generator of the CPU.
    """

    tensors: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor | None]
    learning: Mapping[str, bool]
    training: Mapping[str, bool]
    hooks: Mapping[str, tuple[Mapping[int, Any], ...]]
    random: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """Copies the state of a model."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tensors = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
        return cls(
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            {name: None if p.grad is None else p.grad.detach().clone() for name, p in parameters.items()},
            {name: parameter.requires_grad for name, parameter in parameters.items()},
            {path: module.training for path, module in model.named_modules()},
            {path: tuple(dict(table) for table in hooks_of(module)) for path, module in model.named_modules()},
            torch.get_rng_state(),
        )

    def changed(self, model: nn.Module, *, random: bool = False) -> str:
        """Says what is different in a model now, in a few words; nothing where all is the same.

        Args:
            model: The model.
            random: Whether the state of the generator counts.
        """
        now = State.of(model)
        for name in {**self.tensors, **now.tensors}:
            if not _same(self.tensors.get(name), now.tensors.get(name)):
                return f"the values of {name}"
        for name, gradient in self.gradients.items():
            if not _same(gradient, now.gradients.get(name)):
                return f"the gradient of {name}"
        for name, flag in self.learning.items():
            if now.learning.get(name) is not flag:
                return f"requires_grad of {name}"
        for path, mode in self.training.items():
            if now.training.get(path) is not mode:
                return f"the mode of {path or 'the model'} (train or eval)"
        for path, hooks in self.hooks.items():
            if now.hooks.get(path) != hooks:
                return f"the hooks of {path or 'the model'}"
        same = not random or torch.equal(self.random, now.random)
        return "" if same else "the state of PyTorch's random numbers"


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    same = first.shape == second.shape and first.dtype == second.dtype
    return same and torch.equal(first.nan_to_num(nan=0.5), second.nan_to_num(nan=0.5))

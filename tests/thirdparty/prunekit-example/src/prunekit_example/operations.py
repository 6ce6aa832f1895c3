"""An operation that nobody can look into, as if it had a kernel of its own, and its rule."""

from __future__ import annotations

from typing import Any

import torch

from prunekit.plugin import Axis, OpCall


@torch.library.custom_op("prunekit_example::swish", mutates_args=())
def swish(x: torch.Tensor, beta: float) -> torch.Tensor:
    """Computes ``x * sigmoid(beta * x)``, element by element."""
    return x * torch.sigmoid(beta * x)


@swish.register_fake
def _(x: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.beta = inputs[1]


def _swish_backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    (x,) = ctx.saved_tensors
    gate = torch.sigmoid(ctx.beta * x)
    return gradient * gate * (1 + ctx.beta * x * (1 - gate)), None


swish.register_autograd(_swish_backward, setup_context=_keep)


def swish_rule(call: OpCall) -> list[Axis]:
    """Each element by itself: the output has the axes of the input."""
    return list(call["x"].axes)

"""Two operations that nobody can look into, as if they had kernels of their own, and their rules."""

from __future__ import annotations

from typing import Any

import torch

from prunekit_core import Axis, OpCall, Role


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


@torch.library.custom_op("prunekit_example::clip", mutates_args=())
def clip(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Clips the last dim of ``x`` to ``[-limit, limit]``; ``limit`` is ``[units]``."""
    return torch.minimum(torch.maximum(x, -limit), limit)


@clip.register_fake
def _(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def swish_rule(call: OpCall) -> list[Axis]:
    """Each element by itself: the output has the axes of the input."""
    return list(call["x"].axes)


def clip_rule(call: OpCall) -> list[Axis]:
    """The limits lie along the last dim."""
    x, limit = call["x"], call["limit"]
    call.tie(x.axes[-1], limit.axes[0])
    call.role(limit, 0, Role.ALONG)
    return list(x.axes)

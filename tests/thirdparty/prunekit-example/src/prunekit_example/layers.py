"""Two layers and a small network of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit_example.operations import swish


class ScaledSwish(nn.Module):
    """A linear map, an activation and a scale per unit in one: ``swish(x @ weight.T) * gain``.

    Its parameters have different ranks, and it refuses to run when ``width`` isn't the number of its units.
    """

    def __init__(self, inputs: int, width: int, beta: float = 1.5) -> None:
        super().__init__()
        self.width, self.beta = width, beta
        self.weight = nn.Parameter(torch.randn(width, inputs) / inputs**0.5)
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = swish(nn.functional.linear(x, self.weight), self.beta)
        return hidden.unflatten(-1, (1, self.width)).flatten(-2) * self.gain

    def extra_repr(self) -> str:
        return f"width={self.width}"


class _Clip(torch.autograd.Function):
    """Clips with NumPy, and lets the whole gradient through to the inputs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, limit)
        bound = limit.detach().numpy()
        return torch.from_numpy(np.clip(x.detach().numpy(), -bound, bound))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, limit = ctx.saved_tensors
        outside = (x.abs() > limit) * x.sign() * gradient
        return gradient, outside.flatten(0, -2).sum(0)


class SoftClip(nn.Module):
    """Clips each unit to a learnt limit; nothing of PyTorch sees what happens inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _Clip.apply(x, self.limit)
        return result

    def extra_repr(self) -> str:
        return f"width={len(self.limit)}"


class Net(nn.Module):
    """Both layers between two linear ones."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = ScaledSwish(8, width)
        self.clip = SoftClip(width)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.clip(self.first(x)))
        return result

"""A compensator, and a replacement for a module that can't hold a smaller shape."""

from __future__ import annotations

import torch
from torch import nn

from prunekit.plugin import Repair, Replacement


class Louder:
    """Scales each layer that lost inputs so that what it puts out varies as much as before."""

    def __call__(self, repair: Repair) -> None:
        """Changes the weights through the repair, which undoes what makes a layer's error larger."""
        for problem in repair.layers():
            wanted = problem.fit.target_variance
            if wanted is None:
                continue
            now = torch.einsum("gof,gfh,goh->", problem.weight, problem.fit.covariance, problem.weight)
            factor = float((wanted.sum() / now.clamp(min=1e-12)).sqrt())
            repair.settle(problem, problem.weight * factor, problem.offset, f"factor {factor:.2f}")


class LabelledScale(nn.Module):
    """Multiplies each feature by a number; its size is part of a text, which no cut can change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.label = f"scale of {width}"
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.label != f"scale of {x.shape[-1]}":
            raise ValueError(f"{x.shape[-1]} features for a {self.label}")
        return x * self.gain


class Scale(nn.Module):
    """The same without a label."""

    def __init__(self, gain: nn.Parameter) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def _convert(module: nn.Module) -> nn.Module:
    assert isinstance(module, LabelledScale)
    return Scale(module.gain)


SCALE = Replacement("example_scale", LabelledScale, _convert)

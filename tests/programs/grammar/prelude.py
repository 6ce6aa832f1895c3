"""What the programs of the grammar have at hand; a program that is written to a file starts with this text."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize

__all__ = [
    "Centred",
    "Doubled",
    "F",
    "Out",
    "Positive",
    "Scaled",
    "math",
    "nn",
    "parametrizations",
    "parametrize",
    "torch",
    "torchvision",
]


@dataclasses.dataclass
class Out:
    """Outputs by attribute."""

    first: torch.Tensor
    rest: object = None


class Doubled(nn.Module):
    """A parametrization that multiplies by a number."""

    def forward(self, weight):
        return weight * 2.0


class Positive(nn.Module):
    """A parametrization that keeps a weight positive."""

    def forward(self, weight):
        return F.softplus(weight)


class Centred(nn.Module):
    """A parametrization that takes the mean over each row's columns away."""

    def forward(self, weight):
        return weight - weight.flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))


class Scaled(nn.Module):
    """A parametrization with a parameter for every row."""

    def __init__(self, rows):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(rows))

    def forward(self, weight):
        return weight * self.gain.view(-1, *[1] * (weight.dim() - 1))

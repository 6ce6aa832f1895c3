"""Prune a small residual network to half of its MACs and fine-tune it: ``python examples/conv_net.py``.

Needs scikit-learn, which brings the data. Takes about ten seconds on a CPU.
"""

from __future__ import annotations

import argparse

import digits
import torch
from torch import Tensor, nn

import prunekit as pk


class Block(nn.Module):
    """A residual block: its input and its output have the same channels, so they can only be pruned together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns ``[batch, channels, height, width]``."""
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def build(width: int = 32) -> nn.Module:
    """Makes the network, for images ``[batch, 1, 8, 8]``; nothing in it knows that it will be pruned."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        Block(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        Block(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def main(epochs: int) -> None:
    """Trains, prunes, fine-tunes."""
    torch.manual_seed(0)
    images, labels, *held_out = digits.load()
    model = build()
    digits.train(model, images, labels, epochs, rate=1e-2)
    trained = digits.accuracy(model, *held_out)

    # one image is enough: it is only used to see which operations the model runs
    result = pk.prune(model, images[:1], target={"macs": 0.5})
    print(result)
    after_cut = digits.accuracy(model, *held_out)

    # the model is an ordinary one with smaller layers; its parameters are the same objects, an optimizer comes after
    digits.train(model, images, labels, epochs, rate=5e-3)
    tuned = digits.accuracy(model, *held_out)
    print(f"accuracy: {trained:.1%} trained, {after_cut:.1%} after the cut, {tuned:.1%} fine-tuned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data, before and after the cut")
    main(parser.parse_args().epochs)

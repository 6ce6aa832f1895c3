"""Prune step by step with a criterion that this script registers: ``python examples/own_criterion.py``.

Needs scikit-learn, which brings the data. Takes about ten seconds on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import conv_net
import digits
import torch
from torch import Tensor

import prunekit as pk
from prunekit.plugin import hookimpl


class ReadersImportance:
    """Scores a unit by the weights that read it: what later layers ignore leaves first."""

    def __call__(self, group: pk.Group) -> Tensor | None:
        """Returns one score for each unit, ``[units]``; None for a group that no weight reads."""
        scores = None
        for view in group.views():
            if view.role is pk.Role.IN:
                strengths = view.slices(view.values()).abs().mean(1)  # one for each position of the weight's dim
                found = view.per_unit(strengths, group.size())
                scores = found if scores is None else scores + found
        return scores


class Plugin:
    """A plugin is anything with functions that implement hooks: an object here, a module in a package."""

    @hookimpl
    def prunekit_importance(self) -> Mapping[str, Callable[..., Any]]:
        """Registers the criterion under a name."""
        return {"readers": ReadersImportance}


def main(epochs: int, steps: int) -> None:
    """Trains, then prunes a bit and trains a bit in turns."""
    torch.manual_seed(0)
    images, labels, *held_out = digits.load()
    model = conv_net.build()
    digits.train(model, images, labels, epochs, rate=1e-2)
    print(f"trained: accuracy {digits.accuracy(model, *held_out):.1%}")

    # a registry for this script alone; a package registers with an entry point instead, and needs no argument
    registry = pk.Registry(extra={"own_criterion": Plugin()})
    pruner = pk.BasePruner(model, images[:1], "readers", pruning_ratio=0.4, iterative_steps=steps, registry=registry)
    for step in range(1, steps + 1):
        pruner.step()
        digits.train(model, images, labels, max(1, epochs // 2), rate=5e-3)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"step {step} of {steps}: {size:,} parameters, accuracy {digits.accuracy(model, *held_out):.1%}")
    print(pruner.report())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data; half as many after each step")
    parser.add_argument("--steps", type=int, default=3, help="how often units are removed")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.steps)

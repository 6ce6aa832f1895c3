"""Moving means: constant parts of what removed units did go into the bias."""

from __future__ import annotations

import torch

from prunekit_plugins.compensation.layer_fit import LayerFit
from prunekit_plugins.compensation.repair import Repair

_CONSTANT = 1e-12


class MeanBias:
    """Moves the mean error of every consumer that lost inputs into its bias.

    ``b' = b + E[y - W x - b]``, with ``y`` what it put out before the cut; while what it reads is what it read then,
    ``b' = b + W_R mu_R`` for the removed units ``R``. Where there is no bias, the mean that a norm subtracts next is
    moved; where there is neither, the consumer is left alone.
    """

    def __call__(self, repair: Repair) -> None:
        """Moves the means, consumer after consumer."""
        for problem in repair.layers():
            if _movable(repair, problem, "bias"):
                repair.settle(problem, problem.weight, problem.mean_error(problem.weight, problem.whole()))


class ConstantUnits:
    """Moves what constant units did into the bias of their consumers: exact for them.

    A removed unit that is the same for all samples (a dead neuron after its bias and activation) contributes
    ``W_c x_c``, a constant. Units that vary are not made up for.
    """

    def __call__(self, repair: Repair) -> None:
        """Moves the constants, consumer after consumer."""
        for problem in repair.layers(lost=True):
            constant = problem.lost_variance <= _CONSTANT * problem.lost_mean.square()
            if not bool(constant.any()):
                repair.left[problem.name] = "constant_units: no removed unit is constant"
                continue
            if _movable(repair, problem, "constant_units"):
                change = torch.einsum("gof,gf->go", problem.lost_weight, problem.lost_mean * constant)
                share = f"{int(constant.sum())} of {constant.numel()} removed inputs are constant"
                repair.settle(problem, problem.weight, problem.offset + change, share)


def _movable(repair: Repair, problem: LayerFit, method: str) -> bool:
    if not problem.movable:
        repair.left[problem.name] = f"{method}: it has no bias, and no norm subtracts a mean from all that it puts out"
    return problem.movable

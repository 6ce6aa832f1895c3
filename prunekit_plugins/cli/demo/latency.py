"""How long two models take, side by side."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

WARM_UP = 5
ROUNDS = 40


def side_by_side(first: nn.Module, second: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Measures two models in turns, so that whatever else the machine does hits both.

    Args:
        first: One model, in eval mode.
        second: The other.
        inputs: What both are run on.

    Returns:
        The median time of a forward pass of each, in seconds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for round_number in range(WARM_UP + ROUNDS):
            for model, taken in zip((first, second), times, strict=True):
                start = time.perf_counter()
                model(inputs)
                elapsed = time.perf_counter() - start
                if round_number >= WARM_UP:
                    taken.append(elapsed)
    return statistics.median(times[0]), statistics.median(times[1])

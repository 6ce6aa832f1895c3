"""Multiply-accumulates of one forward, counted by PyTorch's own counter while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit_plugins.measure.latency import evaluating, runner


def count_macs(model: nn.Module, inputs: Any) -> float:
    """Counts the multiply-accumulates of one forward in eval mode: half of what ``torch.utils.flop_counter`` counts.

    Convolutions, matrix products and attention are in it.

    Args:
        model: The model; its modes are restored.
        inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes long to import

    with evaluating([model]), torch.inference_mode(False), torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            runner(model, inputs)()
    return float(counter.get_total_flops()) / 2

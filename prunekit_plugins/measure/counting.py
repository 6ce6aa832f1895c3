"""Multiply-accumulates of one forward, counted by PyTorch's own counter while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    from torch.utils.flop_counter import FlopCounterMode, flop_registry  # takes long to import

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # PyTorch before 2.15 doesn't count it
    own = {} if attention in flop_registry else {attention: _attention_flops}
    with evaluating([model]), torch.inference_mode(False), torch.no_grad():
        with FlopCounterMode(display=False, custom_mapping=own) as counter:
            runner(model, inputs)()
    return float(counter.get_total_flops()) / 2


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Counts both products of attention from the shapes ``[..., tokens, head dim]`` of its arguments."""
    *batch, rows, width = query
    return 2 * math.prod(batch) * rows * key[-2] * (width + value[-1])

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

    aten = torch.ops.aten
    # PyTorch before 2.15 doesn't count this attention, and so far no version counts grouped products
    ours = {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops, aten._grouped_mm: _grouped_flops}
    own = {op: count for op, count in ours.items() if op not in flop_registry}
    with evaluating([model]), torch.inference_mode(False), torch.no_grad():
        with FlopCounterMode(display=False, custom_mapping=own) as counter:
            runner(model, inputs)()
    return float(counter.get_total_flops()) / 2


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Counts both products of attention from the shapes ``[..., tokens, head dim]`` of its arguments."""
    *batch, rows, width = query
    return 2 * math.prod(batch) * rows * key[-2] * (width + value[-1])


def _grouped_flops(rows: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """Counts a product of rows with the matrix of their group, from the shapes of the rows and of what comes out."""
    if len(rows) == 2 and len(out_shape) == 3:  # what is summed over is split among the groups
        return 2 * math.prod(rows) * out_shape[-1]
    return 2 * math.prod(out_shape) * rows[-1]

"""Prunable equivalents for modules that can't hold a smaller shape."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prunekit.plugin import Registry, Replacement, hookimpl
from prunekit_plugins.layers.attention import convert

ATTENTION = Replacement("multihead_attention", nn.MultiheadAttention, convert)


@hookimpl
def prunekit_replacements() -> Mapping[str, Replacement]:
    """The stand-in for ``nn.MultiheadAttention``."""
    return {"multihead_attention": ATTENTION}


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """The stand-in computes what the attention computes."""
    return {("prunekit_replacements", "multihead_attention"): _check}


def _check(registry: Registry) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
        inputs = [torch.randn(2, 3, 8, dtype=torch.float64, device=layer.out_proj.weight.device) for _ in range(3)]
    importlib.import_module("prunekit.testing").check_replacement(ATTENTION, layer, inputs, registry=registry)

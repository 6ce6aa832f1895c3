"""Prunable equivalents for modules that can't hold a smaller shape."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from prunekit.plugin import Replacement, hookimpl
from prunekit_plugins.layers.attention import convert


@hookimpl
def prunekit_replacements() -> Mapping[str, Replacement]:
    """The stand-in for ``nn.MultiheadAttention``."""
    return {"multihead_attention": Replacement("multihead_attention", nn.MultiheadAttention, convert)}

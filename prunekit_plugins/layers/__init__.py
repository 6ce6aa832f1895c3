"""Layer types for PyTorch's own layers, and the functions that prune one layer by itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from prunekit.plugin import LayerType, hookimpl
from prunekit_plugins.layers.attention import (
    PrunableMultiheadAttention,
    prune_multihead_attention_in_channels,
    prune_multihead_attention_out_channels,
)
from prunekit_plugins.layers.recurrent import prune_recurrent_in_channels, prune_recurrent_out_channels
from prunekit_plugins.layers.removal import (
    prune_batchnorm_in_channels,
    prune_batchnorm_out_channels,
    prune_conv_in_channels,
    prune_conv_out_channels,
    prune_depthwise_conv_in_channels,
    prune_depthwise_conv_out_channels,
    prune_embedding_in_channels,
    prune_embedding_out_channels,
    prune_groupnorm_in_channels,
    prune_groupnorm_out_channels,
    prune_instancenorm_in_channels,
    prune_instancenorm_out_channels,
    prune_layernorm_in_channels,
    prune_layernorm_out_channels,
    prune_linear_in_channels,
    prune_linear_out_channels,
    prune_parameter_in_channels,
    prune_parameter_out_channels,
    prune_prelu_in_channels,
    prune_prelu_out_channels,
)
from prunekit_plugins.layers.types import LAYER_TYPES

__all__ = [
    "PrunableMultiheadAttention",
    "prune_batchnorm_in_channels",
    "prune_batchnorm_out_channels",
    "prune_conv_in_channels",
    "prune_conv_out_channels",
    "prune_depthwise_conv_in_channels",
    "prune_depthwise_conv_out_channels",
    "prune_embedding_in_channels",
    "prune_embedding_out_channels",
    "prune_groupnorm_in_channels",
    "prune_groupnorm_out_channels",
    "prune_instancenorm_in_channels",
    "prune_instancenorm_out_channels",
    "prune_layernorm_in_channels",
    "prune_layernorm_out_channels",
    "prune_linear_in_channels",
    "prune_linear_out_channels",
    "prune_multihead_attention_in_channels",
    "prune_multihead_attention_out_channels",
    "prune_parameter_in_channels",
    "prune_parameter_out_channels",
    "prune_prelu_in_channels",
    "prune_prelu_out_channels",
    "prune_recurrent_in_channels",
    "prune_recurrent_out_channels",
]


@hookimpl
def prunekit_layer_types() -> Mapping[type[nn.Module] | str, LayerType]:
    """Layer types of PyTorch's own layers."""
    return LAYER_TYPES

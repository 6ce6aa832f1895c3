"""What prunekit must know to prune models of these layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from prunekit.plugin import LayerType, Rule, hookimpl
from prunekit_example.layer_types import SCALED_SWISH, SOFT_CLIP
from prunekit_example.layers import ScaledSwish, SoftClip
from prunekit_example.operations import swish_rule


@hookimpl
def prunekit_op_rules() -> Mapping[str, Rule]:
    """The operation."""
    return {"prunekit_example::swish": swish_rule}


@hookimpl
def prunekit_layer_types() -> Mapping[type[nn.Module], LayerType]:
    """Both layers: one is traced through, the other one isn't looked into."""
    return {ScaledSwish: SCALED_SWISH, SoftClip: SOFT_CLIP}

"""Layer types of PyTorch's own layers: pruning functions, and the attributes that state their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunekit.plugin import LayerType, Layout, Product, Resizing, prefix
from prunekit_plugins.layers import attention, recurrent, removal

Layouts = Mapping[str, tuple[Layout, ...]]


def conv_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``in_channels``, ``out_channels`` and ``groups``; a weight computed from others (``weight_norm``) gives none."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    if "weight" not in resizing:
        return {}
    groups = resizing.prefix("weight", 0, module.groups)
    first, second = resizing.size("weight", 0), resizing.size("weight", 1)
    if module.transposed:
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def conv_out(module: nn.Module, layouts: Layouts) -> Layout | None:
    """Output channels: rows of the weight, or ``G x o`` of a transposed one."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    if "weight" not in layouts:
        return None
    weight = layouts["weight"]
    return _grouped(weight, module.groups) if module.transposed else weight[0]


def conv_in(module: nn.Module, layouts: Layouts) -> Layout | None:
    """Input channels: ``G x i``, or rows of a transposed weight."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    if "weight" not in layouts:
        return None
    weight = layouts["weight"]
    return weight[0] if module.transposed else _grouped(weight, module.groups)


def _grouped(weight: tuple[Layout, ...], groups: int) -> Layout | None:
    outer = prefix(weight[0], groups)
    if outer is None or groups == 1:
        return weight[1] if groups == 1 else None
    return outer if weight[1].size == 1 else Product((outer, weight[1]))


def linear_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``in_features`` and ``out_features``; a weight computed from others (``weight_norm``) gives neither."""
    if "weight" not in resizing:
        return {}
    return {"out_features": resizing.size("weight", 0), "in_features": resizing.size("weight", 1)}


def batch_norm_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``num_features``, from whichever of the parameters and statistics exist."""
    name = next((name for name in ("weight", "running_mean") if name in resizing), None)
    return {} if name is None else {"num_features": resizing.size(name, 0)}


def layer_norm_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``normalized_shape``; without affine parameters it is found by rehearsal."""
    return {"normalized_shape": resizing.shape("weight")} if "weight" in resizing else {}


def group_norm_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``num_channels`` and ``num_groups``."""
    assert isinstance(module, nn.GroupNorm)
    if "weight" not in resizing:
        return {}
    return {
        "num_channels": resizing.size("weight", 0),
        "num_groups": resizing.prefix("weight", 0, module.num_groups),
    }


def prelu_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``num_parameters``."""
    return {"num_parameters": resizing.size("weight", 0)}


def embedding_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``num_embeddings`` and ``embedding_dim``, and where the row for padding is."""
    assert isinstance(module, nn.Embedding)
    sizes = {"num_embeddings": resizing.size("weight", 0), "embedding_dim": resizing.size("weight", 1)}
    if module.padding_idx is None:
        return sizes
    return {**sizes, "padding_idx": resizing.place("weight", 0, module.padding_idx)}


def rows(module: nn.Module, layouts: Layouts) -> Layout | None:
    """Channels that are dim 0 of the weight (or of the statistics)."""
    found = layouts.get("weight") or layouts.get("running_mean")
    return None if found is None else found[0]


def columns(module: nn.Module, layouts: Layouts) -> Layout | None:
    """Channels that are the last dim of the weight."""
    return layouts["weight"][-1] if "weight" in layouts else None


CONV = LayerType(
    "conv",
    prune_out=removal.prune_conv_out_channels,
    prune_in=removal.prune_conv_in_channels,
    also_out=(removal.prune_depthwise_conv_out_channels,),
    flat_out=conv_out,
    flat_in=conv_in,
    attributes=conv_attributes,
)
LINEAR = LayerType(
    "linear",
    prune_out=removal.prune_linear_out_channels,
    prune_in=removal.prune_linear_in_channels,
    flat_out=rows,
    flat_in=columns,
    attributes=linear_attributes,
)
BATCH_NORM = LayerType(
    "batch norm",
    prune_out=removal.prune_batchnorm_out_channels,
    prune_in=removal.prune_batchnorm_in_channels,
    flat_out=rows,
    flat_in=rows,
    attributes=batch_norm_attributes,
    same_in_training=True,
)
LAYER_NORM = LayerType(
    "layer norm",
    prune_out=removal.prune_layernorm_out_channels,
    prune_in=removal.prune_layernorm_in_channels,
    flat_out=columns,
    flat_in=columns,
    attributes=layer_norm_attributes,
)
GROUP_NORM = LayerType(
    "group norm",
    prune_out=removal.prune_groupnorm_out_channels,
    prune_in=removal.prune_groupnorm_in_channels,
    flat_out=rows,
    flat_in=rows,
    attributes=group_norm_attributes,
)
PRELU = LayerType(
    "prelu",
    prune_out=removal.prune_prelu_out_channels,
    prune_in=removal.prune_prelu_in_channels,
    flat_out=rows,
    flat_in=rows,
    attributes=prelu_attributes,
)
EMBEDDING = LayerType(
    "embedding",
    prune_out=removal.prune_embedding_out_channels,
    prune_in=removal.prune_embedding_in_channels,
    flat_out=columns,
    flat_in=columns,
    attributes=embedding_attributes,
)
DROPOUT = LayerType("dropout", same_in_training=True)

LAYER_TYPES: Mapping[type[nn.Module] | str, LayerType] = {
    nn.modules.conv._ConvNd: CONV,
    nn.Linear: LINEAR,
    nn.modules.batchnorm._BatchNorm: BATCH_NORM,
    nn.modules.instancenorm._InstanceNorm: BATCH_NORM,
    nn.LayerNorm: LAYER_NORM,
    nn.RMSNorm: LAYER_NORM,
    nn.GroupNorm: GROUP_NORM,
    nn.PReLU: PRELU,
    nn.Embedding: EMBEDDING,
    nn.Dropout: DROPOUT,
    nn.Dropout1d: DROPOUT,
    nn.Dropout2d: DROPOUT,
    nn.Dropout3d: DROPOUT,
    nn.AlphaDropout: DROPOUT,
    nn.FeatureAlphaDropout: DROPOUT,
    "torchvision.ops.stochastic_depth.StochasticDepth": DROPOUT,
    "timm.layers.drop.DropPath": DROPOUT,
    nn.RNNBase: recurrent.RECURRENT,
    nn.RNNCellBase: recurrent.RECURRENT,
    nn.MultiheadAttention: attention.ATTENTION,
    attention.PrunableMultiheadAttention: attention.STAND_IN,
}

"""Pruning functions: remove units from one layer by itself, ``prune(layer, indices) -> layer``, in place.

They change that layer only; to keep a model whole, remove units through a group of a `DependencyGraph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from prunekit.plugin import UnitsError, check_indices, shrink_layer, shrink_tensor


def remaining(size: int, indices: Sequence[int] | torch.Tensor, layer: nn.Module | torch.Tensor) -> torch.Tensor:
    """Returns the positions that stay when some are removed.

    Args:
        size: Number of positions.
        indices: Positions to remove, in any order: ints, or an integer tensor.
        layer: The layer (or parameter); its class is named in errors.

    Raises:
        UnitsError: An index is out of range or repeated, or nothing would remain.
    """
    gone = check_indices(indices, size, type(layer).__name__)
    if len(gone) == size:
        raise UnitsError("All units of a layer can't be removed.", where=type(layer).__name__)
    mask = torch.ones(size, dtype=torch.bool, device="cpu")
    mask[gone] = False
    return mask.nonzero().flatten()


def _cut(layer: nn.Module, dims: Mapping[str, int], kept: torch.Tensor, *sizes: str) -> None:
    """Cuts tensors of a layer, each along one dim, and sets the attributes that say how many positions stay."""
    shrink_layer(layer, {name: {dim: kept} for name, dim in dims.items()}, dict.fromkeys(sizes, len(kept)))


def prune_conv_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes filters of a (transposed) convolution; of a depthwise one, channels."""
    assert isinstance(layer, nn.modules.conv._ConvNd)
    if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return prune_depthwise_conv_out_channels(layer, idxs)
    rows = kept = remaining(layer.out_channels, idxs, layer)
    if layer.groups > 1:
        kept = _inside_groups(layer, layer.out_channels, kept)
        rows = kept[: len(kept) // layer.groups] if layer.transposed else kept
    cuts = {"weight": {1 if layer.transposed else 0: rows}, "bias": {0: kept}}
    shrink_layer(layer, cuts, {"out_channels": len(kept)})
    return layer


def prune_conv_in_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes input channels of a (transposed) convolution; of a grouped one, the same ones in every group."""
    assert isinstance(layer, nn.modules.conv._ConvNd)
    if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        return prune_depthwise_conv_out_channels(layer, idxs)
    rows = kept = remaining(layer.in_channels, idxs, layer)
    if layer.groups > 1:
        kept = _inside_groups(layer, layer.in_channels, kept)
        rows = kept if layer.transposed else kept[: len(kept) // layer.groups]
    shrink_layer(layer, {"weight": {0 if layer.transposed else 1: rows}}, {"in_channels": len(kept)})
    return layer


def _inside_groups(layer: nn.modules.conv._ConvNd, channels: int, kept: torch.Tensor) -> torch.Tensor:
    width = channels // layer.groups
    inner = kept[kept < width]
    expected = torch.cat([inner + width * group for group in range(layer.groups)])
    if not len(inner) or not torch.equal(expected, kept):
        raise UnitsError(
            "A grouped convolution loses the same channels in every group.",
            where=f"{channels} channels in {layer.groups} groups",
            hint=f"remove position p of a group as p, p + {width}, p + {2 * width}, ...",
        )
    return kept


def prune_depthwise_conv_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes channels of a depthwise convolution."""
    assert isinstance(layer, nn.modules.conv._ConvNd)
    kept = remaining(layer.out_channels, idxs, layer)
    _cut(layer, {"weight": 0, "bias": 0}, kept, "in_channels", "out_channels", "groups")
    return layer


def prune_linear_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes rows of a linear layer."""
    assert isinstance(layer, nn.Linear)
    kept = remaining(layer.out_features, idxs, layer)
    _cut(layer, {"weight": 0, "bias": 0}, kept, "out_features")
    return layer


def prune_linear_in_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes columns of a linear layer."""
    assert isinstance(layer, nn.Linear)
    kept = remaining(layer.in_features, idxs, layer)
    _cut(layer, {"weight": 1}, kept, "in_features")
    return layer


def prune_batchnorm_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes channels of a batch norm: affine parameters and statistics."""
    assert isinstance(layer, nn.modules.batchnorm._NormBase)
    kept = remaining(layer.num_features, idxs, layer)
    _cut(layer, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0), kept, "num_features")
    return layer


prune_instancenorm_out_channels = prune_batchnorm_out_channels
"""Removes channels of an instance norm."""


def prune_layernorm_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes units of the last dim of a layer norm (or RMS norm)."""
    assert isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    *lead, size = layer.normalized_shape
    kept = remaining(size, idxs, layer)
    cuts = {name: {len(lead): kept} for name in ("weight", "bias")}
    shrink_layer(layer, cuts, {"normalized_shape": (*lead, len(kept))})
    return layer


def prune_groupnorm_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes channels of a group norm; what stays must divide into its groups."""
    assert isinstance(layer, nn.GroupNorm)
    kept = remaining(layer.num_channels, idxs, layer)
    if len(kept) % layer.num_groups:
        raise UnitsError(
            "The channels that stay don't divide into the groups of the norm.",
            where=f"{len(kept)} channels in {layer.num_groups} groups",
        )
    _cut(layer, {"weight": 0, "bias": 0}, kept, "num_channels")
    return layer


def prune_prelu_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes channels of a PReLU; one with a single shared slope stays as it is."""
    assert isinstance(layer, nn.PReLU)
    if layer.num_parameters == 1:
        return layer
    kept = remaining(layer.num_parameters, idxs, layer)
    _cut(layer, {"weight": 0}, kept, "num_parameters")
    return layer


def prune_embedding_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes columns of an embedding."""
    assert isinstance(layer, nn.Embedding)
    kept = remaining(layer.embedding_dim, idxs, layer)
    _cut(layer, {"weight": 1}, kept, "embedding_dim")
    return layer


def prune_parameter_out_channels(
    parameter: torch.Tensor, idxs: Sequence[int] | torch.Tensor, dim: int = -1
) -> torch.Tensor:
    """Removes positions of a bare parameter (or buffer), one that no layer owns, in place."""
    shrink_tensor(parameter, {dim % parameter.dim(): remaining(parameter.shape[dim], idxs, parameter)})
    return parameter


prune_parameter_in_channels = prune_parameter_out_channels
prune_depthwise_conv_in_channels = prune_depthwise_conv_out_channels
prune_batchnorm_in_channels = prune_batchnorm_out_channels
prune_instancenorm_in_channels = prune_instancenorm_out_channels
prune_layernorm_in_channels = prune_layernorm_out_channels
prune_groupnorm_in_channels = prune_groupnorm_out_channels
prune_prelu_in_channels = prune_prelu_out_channels
prune_embedding_in_channels = prune_embedding_out_channels

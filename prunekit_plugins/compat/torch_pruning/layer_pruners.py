"""Pruning single layers, as objects: one class per kind of layer, and a box of instances.

The functions are those of ``prunekit_plugins.layers``; indices are checked, and may be a tensor.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from prunekit.plugin import ArgumentError, check_indices
from prunekit_plugins import layers
from prunekit_plugins.compat.torch_pruning import ops
from prunekit_plugins.compat.torch_pruning.unavailable import refuse
from prunekit_plugins.layers import (
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
    prune_multihead_attention_in_channels,
    prune_multihead_attention_out_channels,
    prune_parameter_out_channels as prune_parameter,
    prune_prelu_in_channels,
    prune_prelu_out_channels,
    prune_recurrent_in_channels,
    prune_recurrent_out_channels,
)

__all__ = [
    "BasePruningFunc",
    "BatchnormPruner",
    "ConvPruner",
    "DepthwiseConvPruner",
    "EmbeddingPruner",
    "GroupNormPruner",
    "InstanceNormPruner",
    "LSTMPruner",
    "LayernormPruner",
    "LinearPruner",
    "MultiheadAttentionPruner",
    "PReLUPruner",
    "ParameterPruner",
    "PrunerBox",
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
    "prune_lstm_in_channels",
    "prune_lstm_out_channels",
    "prune_multihead_attention_in_channels",
    "prune_multihead_attention_out_channels",
    "prune_parameter_in_channels",
    "prune_parameter_out_channels",
    "prune_prelu_in_channels",
    "prune_prelu_out_channels",
]


class BasePruningFunc(ABC):
    """Prunes layers of one class in place; subclass it for ``customized_pruners``.

    Args:
        pruning_dim: The dim of a parameter that holds channels; only `ParameterPruner` looks at it.
    """

    TARGET_MODULES: ClassVar[type[Any] | tuple[type[Any], ...] | None] = None

    def __init__(self, pruning_dim: int = 1) -> None:
        self.pruning_dim = pruning_dim

    @abstractmethod
    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Removes output channels and returns the layer."""

    @abstractmethod
    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Removes input channels and returns the layer."""

    @abstractmethod
    def get_out_channels(self, layer: Any) -> int | None:
        """Returns the number of output channels."""

    @abstractmethod
    def get_in_channels(self, layer: Any) -> int | None:
        """Returns the number of input channels."""

    def get_out_channel_groups(self, layer: Any) -> int:
        """Returns how many groups the output channels form."""
        return 1

    def get_in_channel_groups(self, layer: Any) -> int:
        """Returns how many groups the input channels form."""
        return 1

    def check(self, layer: Any, idxs: Sequence[int], to_output: bool = True) -> None:
        """Checks a layer and indices.

        Raises:
            ArgumentError: The layer is of another class.
            UnitsError: An index is no integer, out of range or repeated.
        """
        if self.TARGET_MODULES is not None and not isinstance(layer, self.TARGET_MODULES):
            raise ArgumentError(f"{type(self).__name__} doesn't prune {type(layer).__name__}.")
        size = self.get_out_channels(layer) if to_output else self.get_in_channels(layer)
        if size is not None:
            check_indices(idxs, size, type(layer).__name__)

    def __call__(
        self, layer: Any, idxs: Sequence[int], to_output: bool = True, inplace: bool = True, dry_run: bool = False
    ) -> Any:
        """Prunes a layer.

        Args:
            layer: The layer.
            idxs: Channels to remove.
            to_output: Whether these are output channels.
            inplace: False prunes a copy.
            dry_run: True only checks the indices.

        Returns:
            The layer or the copy; with ``dry_run`` the layer as it is.
        """
        self.check(layer, idxs, to_output)
        if dry_run:
            return layer
        target = layer if inplace else copy.deepcopy(layer)
        return self.prune_out_channels(target, idxs) if to_output else self.prune_in_channels(target, idxs)

    def _prune_parameter_and_grad(self, weight: nn.Parameter, keep_idxs: Any, pruning_dim: int) -> nn.Parameter:
        """Returns a parameter that holds the kept positions of a dim, with its gradient cut alike."""
        kept = torch.as_tensor(keep_idxs, dtype=torch.long, device=weight.device)
        cut = nn.Parameter(weight.detach().index_select(pruning_dim, kept), requires_grad=weight.requires_grad)
        if weight.grad is not None:
            cut.grad = weight.grad.index_select(pruning_dim, kept)
        return cut


class ConvPruner(BasePruningFunc):
    """Convolutions, plain, transposed and grouped."""

    TARGET_MODULES = TARGET_MODULE = ops.TORCH_CONV
    prune_out_channels = staticmethod(prune_conv_out_channels)
    prune_in_channels = staticmethod(prune_conv_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``out_channels``."""
        return int(layer.out_channels)

    def get_in_channels(self, layer: Any) -> int:
        """Returns ``in_channels``."""
        return int(layer.in_channels)

    def get_out_channel_groups(self, layer: Any) -> int:
        """Returns ``groups``."""
        return int(layer.groups)

    get_in_channel_groups = get_out_channel_groups


class DepthwiseConvPruner(ConvPruner):
    """Depthwise convolutions: their input and output channels are the same."""

    prune_out_channels = staticmethod(prune_depthwise_conv_out_channels)
    prune_in_channels = staticmethod(prune_depthwise_conv_in_channels)


class LinearPruner(BasePruningFunc):
    """Linear layers."""

    TARGET_MODULES = ops.TORCH_LINEAR
    prune_out_channels = staticmethod(prune_linear_out_channels)
    prune_in_channels = staticmethod(prune_linear_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``out_features``."""
        return int(layer.out_features)

    def get_in_channels(self, layer: Any) -> int:
        """Returns ``in_features``."""
        return int(layer.in_features)


class BatchnormPruner(BasePruningFunc):
    """Batch norms."""

    TARGET_MODULES: ClassVar[Any] = ops.TORCH_BATCHNORM
    prune_out_channels = staticmethod(prune_batchnorm_out_channels)
    prune_in_channels = staticmethod(prune_batchnorm_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``num_features``."""
        return int(layer.num_features)

    get_in_channels = get_out_channels


class InstanceNormPruner(BatchnormPruner):
    """Instance norms."""

    TARGET_MODULES: ClassVar[Any] = ops.TORCH_INSTANCENORM
    prune_out_channels = staticmethod(prune_instancenorm_out_channels)
    prune_in_channels = staticmethod(prune_instancenorm_in_channels)


class LayernormPruner(BasePruningFunc):
    """Layer norms, along the last dim.

    Args:
        metrcis: Ignored, as in Torch-Pruning (and spelt like there).
        pruning_dim: Only -1: the dim of a layer norm that holds channels is its last one.

    Raises:
        UnavailableError: Another dim is asked for.
    """

    TARGET_MODULES = ops.TORCH_LAYERNORM
    prune_out_channels = staticmethod(prune_layernorm_out_channels)
    prune_in_channels = staticmethod(prune_layernorm_in_channels)

    def __init__(self, metrcis: object = None, pruning_dim: int = -1) -> None:
        if pruning_dim != -1:
            raise refuse("Pruning another dim of a layer norm by itself", "channels are its last dim", "use a group")
        super().__init__(pruning_dim)

    def get_out_channels(self, layer: Any) -> int:
        """Returns the last size of ``normalized_shape``."""
        return int(layer.normalized_shape[-1])

    get_in_channels = get_out_channels


class GroupNormPruner(BasePruningFunc):
    """Group norms; what stays must divide into the groups."""

    TARGET_MODULES = ops.TORCH_GROUPNORM
    prune_out_channels = staticmethod(prune_groupnorm_out_channels)
    prune_in_channels = staticmethod(prune_groupnorm_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``num_channels``."""
        return int(layer.num_channels)

    get_in_channels = get_out_channels

    def get_out_channel_groups(self, layer: Any) -> int:
        """Returns ``num_groups``."""
        return int(layer.num_groups)

    get_in_channel_groups = get_out_channel_groups


class PReLUPruner(BasePruningFunc):
    """PReLUs; one with a single shared slope has no channels."""

    TARGET_MODULES = ops.TORCH_PRELU
    prune_out_channels = staticmethod(prune_prelu_out_channels)
    prune_in_channels = staticmethod(prune_prelu_in_channels)

    def get_out_channels(self, layer: Any) -> int | None:
        """Returns ``num_parameters``, or None for a shared slope."""
        return None if layer.num_parameters == 1 else int(layer.num_parameters)

    get_in_channels = get_out_channels


class EmbeddingPruner(BasePruningFunc):
    """Embeddings: their columns."""

    TARGET_MODULES = ops.TORCH_EMBED
    prune_out_channels = staticmethod(prune_embedding_out_channels)
    prune_in_channels = staticmethod(prune_embedding_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``embedding_dim``."""
        return int(layer.embedding_dim)

    get_in_channels = get_out_channels


class MultiheadAttentionPruner(BasePruningFunc):
    """Attention modules: the stream that runs through them."""

    TARGET_MODULES = (ops.TORCH_MHA, layers.PrunableMultiheadAttention)
    prune_out_channels = staticmethod(prune_multihead_attention_out_channels)
    prune_in_channels = staticmethod(prune_multihead_attention_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``embed_dim``."""
        return int(layer.embed_dim)

    get_in_channels = get_out_channels


class LSTMPruner(BasePruningFunc):
    """LSTMs: hidden units in all depths and directions, and input features."""

    TARGET_MODULES = ops.TORCH_LSTM
    prune_out_channels = staticmethod(prune_recurrent_out_channels)
    prune_in_channels = staticmethod(prune_recurrent_in_channels)

    def get_out_channels(self, layer: Any) -> int:
        """Returns ``hidden_size``."""
        return int(layer.hidden_size)

    def get_in_channels(self, layer: Any) -> int:
        """Returns ``input_size``."""
        return int(layer.input_size)


class ParameterPruner(BasePruningFunc):
    """Parameters that no layer owns.

    Args:
        pruning_dim: The dim that holds channels.
    """

    TARGET_MODULES = ops.TORCH_PARAMETER

    def __init__(self, pruning_dim: int = -1) -> None:
        super().__init__(pruning_dim)

    def prune_out_channels(self, tensor: torch.Tensor, idxs: Sequence[int]) -> torch.Tensor:
        """Removes positions along the dim, in place; the object stays."""
        return prune_parameter(tensor, idxs, self.pruning_dim)

    prune_in_channels: Any = prune_out_channels

    def get_out_channels(self, parameter: torch.Tensor) -> int:
        """Returns the size of the dim."""
        return parameter.shape[self.pruning_dim]

    get_in_channels: Any = get_out_channels


PrunerBox: dict[ops.OPTYPE, BasePruningFunc] = {
    ops.OPTYPE.CONV: ConvPruner(),
    ops.OPTYPE.LINEAR: LinearPruner(),
    ops.OPTYPE.BN: BatchnormPruner(),
    ops.OPTYPE.DEPTHWISE_CONV: DepthwiseConvPruner(),
    ops.OPTYPE.PRELU: PReLUPruner(),
    ops.OPTYPE.LN: LayernormPruner(),
    ops.OPTYPE.EMBED: EmbeddingPruner(),
    ops.OPTYPE.PARAMETER: ParameterPruner(),
    ops.OPTYPE.MHA: MultiheadAttentionPruner(),
    ops.OPTYPE.LSTM: LSTMPruner(),
    ops.OPTYPE.GN: GroupNormPruner(),
    ops.OPTYPE.IN: InstanceNormPruner(),
}
"""One pruning object per kind of layer."""

prune_lstm_out_channels = PrunerBox[ops.OPTYPE.LSTM].prune_out_channels
prune_lstm_in_channels = PrunerBox[ops.OPTYPE.LSTM].prune_in_channels
prune_parameter_out_channels = PrunerBox[ops.OPTYPE.PARAMETER].prune_out_channels
prune_parameter_in_channels = PrunerBox[ops.OPTYPE.PARAMETER].prune_in_channels

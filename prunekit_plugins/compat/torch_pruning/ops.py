"""Kinds of layers, under the names and numbers of Torch-Pruning.

The kinds of operations (``CONCAT``, ``SPLIT``, ...) and their classes exist so that programs can import and compare
them. prunekit ties the channels of layers by rules for operations, so no group ever holds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from torch import nn

from prunekit_plugins.compat.torch_pruning.unavailable import refuse
from prunekit_plugins.layers import PrunableMultiheadAttention

TORCH_CONV = nn.modules.conv._ConvNd
TORCH_BATCHNORM = nn.modules.batchnorm._BatchNorm
TORCH_PRELU = nn.PReLU
TORCH_LINEAR = nn.Linear
TORCH_EMBED = nn.Embedding
TORCH_PARAMETER = nn.Parameter
TORCH_LAYERNORM = nn.LayerNorm
TORCH_MHA = nn.MultiheadAttention
TORCH_LSTM = nn.LSTM
TORCH_GROUPNORM = nn.GroupNorm
TORCH_INSTANCENORM = nn.modules.instancenorm._InstanceNorm
TORCH_OTHERS = None


class OPTYPE(IntEnum):
    """Kinds of layers and operations."""

    CONV = 0
    BN = 1
    LINEAR = 2
    PRELU = 3
    DEPTHWISE_CONV = 4
    CONCAT = 5
    SPLIT = 6
    CUSTOMIZED = 7
    ELEMENTWISE = 8
    LN = 9
    EMBED = 10
    PARAMETER = 11
    MHA = 12
    LSTM = 13
    RESHAPE = 14
    GN = 15
    IN = 16
    UNBIND = 17
    EXPAND = 18
    SLICE = 19
    OUTPUT = 20


class _Op(nn.Module):
    """Marks an operation; a group of prunekit holds layers and parameters only."""


class _ConcatOp(_Op):
    pass


class _SplitOp(_Op):
    pass


class _CustomizedOp(_Op):
    pass


class _ElementWiseOp(_Op):
    pass


class DummyMHA(nn.Module):
    """Marks an attention module; prunekit prunes ``nn.MultiheadAttention`` itself, so nothing is an instance of it."""


class DummyPruner:
    """Stands for an operation: it has no channels of its own, and nothing that could be pruned by itself."""

    def __call__(self, layer: Any, *args: Any, **kargs: Any) -> Any:
        """Raises `UnavailableError`."""
        raise self._refusal()

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Raises `UnavailableError`."""
        raise self._refusal()

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Raises `UnavailableError`."""
        raise self._refusal()

    def get_out_channels(self, layer: Any) -> int | None:
        """Returns None: an operation has as many channels as what flows through it."""
        return None

    def get_in_channels(self, layer: Any) -> int | None:
        """Returns None: an operation has as many channels as what flows through it."""
        return None

    def get_out_channel_groups(self, layer: Any) -> int:
        """Returns 1."""
        return 1

    def get_in_channel_groups(self, layer: Any) -> int:
        """Returns 1."""
        return 1

    def _refusal(self) -> Exception:
        return refuse(
            f"{type(self).__name__}: pruning an operation",
            "operations follow the sizes of what flows through them, and sizes that a program states are found by "
            "rehearsal",
            "prune the layer before it, through group.prune()",
        )


class ConcatPruner(DummyPruner):
    """Stands for concatenations."""


class CustomizedPruner(DummyPruner):
    """Stands for customized operations."""


class ElementWisePruner(DummyPruner):
    """Stands for elementwise operations."""


class ExpandPruner(DummyPruner):
    """Stands for expansions."""


class OutputPruner(DummyPruner):
    """Stands for the outputs of a model."""


class ReshapePruner(DummyPruner):
    """Stands for views."""


class SlicePruner(DummyPruner):
    """Stands for slices."""


class SplitPruner(DummyPruner):
    """Stands for splits."""


class UnbindPruner(DummyPruner):
    """Stands for unbinding."""


_CLASSES: dict[OPTYPE, type[Any]] = {
    OPTYPE.CONV: TORCH_CONV,
    OPTYPE.BN: TORCH_BATCHNORM,
    OPTYPE.LINEAR: TORCH_LINEAR,
    OPTYPE.PRELU: TORCH_PRELU,
    OPTYPE.DEPTHWISE_CONV: TORCH_CONV,
    OPTYPE.CONCAT: _ConcatOp,
    OPTYPE.SPLIT: _SplitOp,
    OPTYPE.CUSTOMIZED: _CustomizedOp,
    OPTYPE.LN: TORCH_LAYERNORM,
    OPTYPE.EMBED: TORCH_EMBED,
    OPTYPE.PARAMETER: TORCH_PARAMETER,
    OPTYPE.MHA: TORCH_MHA,
    OPTYPE.LSTM: TORCH_LSTM,
    OPTYPE.GN: TORCH_GROUPNORM,
    OPTYPE.IN: TORCH_INSTANCENORM,
}
_MARKERS = {_ConcatOp: OPTYPE.CONCAT, _SplitOp: OPTYPE.SPLIT, _CustomizedOp: OPTYPE.CUSTOMIZED}


def is_depthwise(module: object) -> bool:
    """Tells whether a module is a depthwise convolution with one filter per channel."""
    return isinstance(module, TORCH_CONV) and module.groups == module.out_channels == module.in_channels > 1


def module2type(module: Any) -> OPTYPE:
    """Returns the kind of a module or parameter; everything else is ``ELEMENTWISE``."""
    if is_depthwise(module):
        return OPTYPE.DEPTHWISE_CONV
    if isinstance(module, PrunableMultiheadAttention):
        return OPTYPE.MHA
    if type(module) in _MARKERS:
        return _MARKERS[type(module)]
    kinds = (kind for kind, cls in _CLASSES.items() if isinstance(module, cls))
    return next(kinds, OPTYPE.ELEMENTWISE)


def type2class(op_type: OPTYPE) -> type[Any]:
    """Returns the class of a kind; operations other than concat, split and customized share one."""
    return _CLASSES.get(OPTYPE(op_type), _ElementWiseOp)

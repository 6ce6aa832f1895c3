"""Recurrent layers: RNN, LSTM and GRU of any depth, in one direction or both, with or without projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core import LayerType, Layout, Resizing, shrink_tensor
from prunekit_plugins.layers.removal import remaining

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _cells(layer: nn.RNNBase) -> Iterator[tuple[int, str]]:
    """Yields the depth and the name suffix of every cell."""
    for depth in range(layer.num_layers):
        yield depth, f"_l{depth}"
        if layer.bidirectional:
            yield depth, f"_l{depth}_reverse"


def _cut(layer: nn.RNNBase, name: str, dim: int, kept: torch.Tensor, blocks: int = 1) -> None:
    """Cuts the same positions out of every block of a parameter dim."""
    tensor = getattr(layer, name, None)
    if tensor is not None:
        width = tensor.shape[dim] // blocks
        shrink_tensor(tensor, {dim: torch.cat([block * width + kept for block in range(blocks)])})


def prune_recurrent_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes hidden units (of a projected LSTM, projected ones) in every depth and direction.

    Indices count the units of one direction: from 0 to ``hidden_size``, or ``proj_size`` where there is one.
    """
    assert isinstance(layer, nn.RNNBase)
    kept = remaining(layer.proj_size or layer.hidden_size, idxs, layer)
    gates, directions = _GATES[layer.mode], 2 if layer.bidirectional else 1
    for depth, cell in _cells(layer):
        if depth:
            _cut(layer, f"weight_ih{cell}", 1, kept, directions)
        _cut(layer, f"weight_hh{cell}", 1, kept)
        if layer.proj_size:
            _cut(layer, f"weight_hr{cell}", 0, kept)
        else:
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                _cut(layer, name + cell, 0, kept, gates)
    if layer.proj_size:
        layer.proj_size = len(kept)
    else:
        layer.hidden_size = len(kept)
    return layer


def prune_recurrent_in_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes input features."""
    assert isinstance(layer, nn.RNNBase)
    kept = remaining(layer.input_size, idxs, layer)
    for depth, cell in _cells(layer):
        if not depth:
            _cut(layer, f"weight_ih{cell}", 1, kept)
    layer.input_size = len(kept)
    return layer


def recurrent_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``input_size``, ``hidden_size`` and ``proj_size``."""
    assert isinstance(module, nn.RNNBase)
    found = {
        "input_size": resizing.size("weight_ih_l0", 1),
        "hidden_size": resizing.size("weight_hh_l0", 0) // _GATES[module.mode],
    }
    return {**found, "proj_size": resizing.size("weight_hh_l0", 1)} if module.proj_size else found


def outputs(module: nn.Module, layouts: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
    """The units that a cell hands on: columns of the hidden-to-hidden weight."""
    return layouts["weight_hh_l0"][1]


def inputs(module: nn.Module, layouts: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
    """Input features: columns of the input-to-hidden weight."""
    return layouts["weight_ih_l0"][1]


RECURRENT = LayerType(
    "recurrent",
    prune_out=prune_recurrent_out_channels,
    prune_in=prune_recurrent_in_channels,
    flat_out=outputs,
    flat_in=inputs,
    attributes=recurrent_attributes,
)

"""Recurrent layers: RNN, LSTM and GRU of any depth, in one direction or both, with or without projections; cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.plugin import LayerType, Layout, Resizing, shrink_layer
from prunekit_plugins.layers.removal import remaining

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_CELL_GATES = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
_Recurrent = nn.RNNBase | nn.RNNCellBase


def _gates(layer: _Recurrent) -> int:
    if isinstance(layer, nn.RNNBase):
        return _GATES[layer.mode]
    return next(gates for kind, gates in _CELL_GATES.items() if isinstance(layer, kind))


def _projected(layer: _Recurrent) -> int:
    return layer.proj_size if isinstance(layer, nn.RNNBase) else 0


def _cells(layer: _Recurrent) -> Iterator[tuple[int, str]]:
    """Yields the depth and the name suffix of every cell."""
    if isinstance(layer, nn.RNNCellBase):
        yield 0, ""
        return
    for depth in range(layer.num_layers):
        yield depth, f"_l{depth}"
        if layer.bidirectional:
            yield depth, f"_l{depth}_reverse"


def _blocks(kept: torch.Tensor, size: int, blocks: int) -> torch.Tensor:
    """The same positions in every block of a dim that holds several blocks of ``size``."""
    return torch.cat([block * size + kept for block in range(blocks)])


def prune_recurrent_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes hidden units (of a projected LSTM, projected ones) in every depth and direction.

    Indices count the units of one direction: from 0 to ``hidden_size``, or ``proj_size`` where there is one.
    """
    assert isinstance(layer, _Recurrent)
    projected = _projected(layer)
    size = projected or layer.hidden_size
    kept = remaining(size, idxs, layer)
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    rows = _blocks(kept, size, _gates(layer))
    cuts: dict[str, dict[int, torch.Tensor]] = {}
    for depth, cell in _cells(layer):
        cuts[f"weight_hh{cell}"] = {1: kept}
        if depth:
            cuts[f"weight_ih{cell}"] = {1: _blocks(kept, size, directions)}
        if projected:
            cuts[f"weight_hr{cell}"] = {0: kept}
        else:
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                cuts.setdefault(name + cell, {})[0] = rows
    shrink_layer(layer, cuts, {"proj_size" if projected else "hidden_size": len(kept)})
    return layer


def prune_recurrent_in_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes input features."""
    assert isinstance(layer, _Recurrent)
    kept = remaining(layer.input_size, idxs, layer)
    cuts = {f"weight_ih{cell}": {1: kept} for depth, cell in _cells(layer) if not depth}
    shrink_layer(layer, cuts, {"input_size": len(kept)})
    return layer


def recurrent_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """``input_size``, ``hidden_size`` and ``proj_size``."""
    assert isinstance(module, _Recurrent)
    _, cell = next(_cells(module))
    rows, handed_on = resizing.size(f"weight_hh{cell}", 0), resizing.size(f"weight_hh{cell}", 1)
    # a cell that runs once makes rows without reading them; what it reads has the size that it checks
    hidden = handed_on if isinstance(module, nn.RNNCellBase) else rows // _gates(module)
    found = {"input_size": resizing.size(f"weight_ih{cell}", 1), "hidden_size": hidden}
    return {**found, "proj_size": handed_on} if _projected(module) else found


def outputs(module: nn.Module, layouts: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
    """The units that a cell hands on: columns of the hidden-to-hidden weight."""
    return layouts["weight_hh" if isinstance(module, nn.RNNCellBase) else "weight_hh_l0"][1]


def inputs(module: nn.Module, layouts: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
    """Input features: columns of the input-to-hidden weight."""
    return layouts["weight_ih" if isinstance(module, nn.RNNCellBase) else "weight_ih_l0"][1]


RECURRENT = LayerType(
    "recurrent",
    prune_out=prune_recurrent_out_channels,
    prune_in=prune_recurrent_in_channels,
    flat_out=outputs,
    flat_in=inputs,
    attributes=recurrent_attributes,
)

"""Multi-head attention that can hold inner widths of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from prunekit.plugin import Concat, LayerType, Layout, Resizing, UnitsError, new_size, prefix, shrink_layer
from prunekit_plugins.layers.removal import remaining


class PrunableMultiheadAttention(nn.MultiheadAttention):
    """Stands in for ``nn.MultiheadAttention``: same parameters under the same names, same call, same numbers.

    It is one, too, for programs that ask ``isinstance``. ``nn.MultiheadAttention`` insists that its inner width equals
    its outer one. This module keeps three widths of its own: ``num_heads``, ``qk_head_dim`` (of queries and keys) and
    ``v_head_dim`` (of values), and the scale it started with. The parameters are the very objects of the module it was
    made from.

    Args:
        source: The module to stand in for.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)  # that of nn.MultiheadAttention makes parameters
        self.embed_dim, self.kdim, self.vdim = source.embed_dim, source.kdim, source.vdim
        self.head_dim, self.add_zero_attn = source.head_dim, source.add_zero_attn
        self.num_heads = source.num_heads
        self.dropout = source.dropout
        self.batch_first = source.batch_first
        self.packed = source.in_proj_weight is not None
        self.qk_head_dim = self.v_head_dim = source.embed_dim // source.num_heads
        self.scale = float(self.qk_head_dim) ** -0.5
        # nn.TransformerEncoderLayer asks for this before it takes its fused path, which must stay off here
        self._qkv_same_embed_dim = False
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, getattr(source, name))
        self.out_proj = source.out_proj
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, getattr(source, name))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``nn.MultiheadAttention.forward``: same arguments, shapes and results."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is only a hint about attn_mask, which is missing")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        k, v = (self._extended(rows, bias) for rows, bias in ((k, self.bias_k), (v, self.bias_v)))
        if mask is not None:  # nothing hides the rows that come last
            mask = F.pad(mask, (0, k.shape[-2] - mask.shape[-1]))
        dropout = self.dropout if self.dropout and self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        # positions come first in memory, as in nn.MultiheadAttention: whoever writes through a view sees the same
        output = self.out_proj(mixed.permute(2, 0, 1, 3).flatten(2))
        if not batched:
            return output.squeeze(1), None if weights is None else weights.squeeze(0)
        return (output.transpose(0, 1) if self.batch_first else output), weights

    def _project(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, qk, values = self.num_heads, self.qk_head_dim, self.v_head_dim
        widths = [heads * qk, heads * qk, heads * values]
        weights: Sequence[torch.Tensor]
        if self.packed:
            weights = self.in_proj_weight.split(widths)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Sequence[torch.Tensor | None] = [None] * 3
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.split(widths)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (heads, dim)).transpose(1, 2)
            for x, w, b, dim in zip((query, key, value), weights, biases, (qk, qk, values), strict=True)
        )
        return q, k, v

    def _extended(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Appends what is learned and a row of zeros to keys or values ``[batch, heads, length, dim]``, if wanted."""
        if bias is not None:
            learned = bias.unflatten(-1, (self.num_heads, rows.shape[-1])).transpose(1, 2)
            rows = torch.cat([rows, learned.expand(len(rows), -1, -1, -1)], 2)
        if self.add_zero_attn:
            rows = torch.cat([rows, rows.new_zeros(rows.shape[0], rows.shape[1], 1, rows.shape[3])], 2)
        return rows

    def _mask(
        self, attn_mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor | None:
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            if mask.dim() == 3:
                mask = mask.reshape(-1, self.num_heads, q.shape[-2], k.shape[-2])
        if padding is not None:
            blocked = _additive(padding, q)[:, None, None, :]
            mask = blocked if mask is None else mask + blocked
        return mask


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


def convert(module: nn.Module) -> nn.Module | None:
    """Makes the stand-in for an ``nn.MultiheadAttention``; None for one that is a stand-in already."""
    assert isinstance(module, nn.MultiheadAttention)
    if isinstance(module, PrunableMultiheadAttention):
        return None
    return PrunableMultiheadAttention(module)


def stand_in_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """Widths, ``num_heads``, ``head_dim``, ``qk_head_dim`` and ``v_head_dim`` of the stand-in."""
    assert isinstance(module, PrunableMultiheadAttention)
    if module.packed:
        packed = resizing.layouts["in_proj_weight"][0]
        parts = packed.parts if isinstance(packed, Concat) and len(packed.parts) == 3 else ()
        queries, values = (parts[0], parts[2]) if parts else (None, None)
    else:
        queries, values = resizing.layouts["q_proj_weight"][0], resizing.layouts["v_proj_weight"][0]
    if module.packed:
        sizes = dict.fromkeys(("embed_dim", "kdim", "vdim"), resizing.size("in_proj_weight", 1))
    else:
        names = {"embed_dim": "q_proj_weight", "kdim": "k_proj_weight", "vdim": "v_proj_weight"}
        sizes = {attribute: resizing.size(name, 1) for attribute, name in names.items()}
    if queries is None or values is None:
        return sizes
    heads = prefix(queries, module.num_heads)
    count = module.num_heads if heads is None else new_size(heads, resizing.kept)
    return {
        **sizes,
        "num_heads": count,
        "head_dim": new_size(queries, resizing.kept) // count,
        "qk_head_dim": new_size(queries, resizing.kept) // count,
        "v_head_dim": new_size(values, resizing.kept) // count,
    }


def stream_layout(module: nn.Module, layouts: Mapping[str, tuple[Layout, ...]]) -> Layout | None:
    """The channels of an attention module are those of the stream: the columns of its input projection."""
    found = layouts.get("in_proj_weight") or layouts.get("q_proj_weight")
    return None if found is None else found[1]


def prune_multihead_attention_out_channels(layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
    """Removes units of the stream that runs through an attention module (its input and output width)."""
    if not isinstance(layer, PrunableMultiheadAttention):
        raise UnitsError(
            "nn.MultiheadAttention can't hold an inner width that differs from its outer one.",
            hint="remove the units through a group: the module is exchanged for an equivalent that can",
        )
    kept = remaining(layer.out_proj.out_features, idxs, layer)
    projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    outputs = ("out_proj.weight", "out_proj.bias")
    cuts = {**{name: {1: kept} for name in projections}, **{name: {0: kept} for name in outputs}}
    shrink_layer(layer, cuts, dict.fromkeys(("out_proj.out_features", "embed_dim"), len(kept)))
    return layer


prune_multihead_attention_in_channels = prune_multihead_attention_out_channels

ATTENTION = LayerType(
    "multi-head attention",
    prune_out=prune_multihead_attention_out_channels,
    prune_in=prune_multihead_attention_in_channels,
    flat_out=stream_layout,
    flat_in=stream_layout,
)
STAND_IN = LayerType(
    "prunable multi-head attention",
    also_out=(prune_multihead_attention_out_channels,),
    flat_out=stream_layout,
    attributes=stand_in_attributes,
)

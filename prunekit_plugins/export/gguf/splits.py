"""Parameters that transformers packs and llama.cpp keeps apart, as data: what comes of each, and how it is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import nn

from prunekit_plugins.export import packed
from prunekit_plugins.export.decoder import Block, Decoder
from prunekit_plugins.export.packed import every_other, halves, turned, whole

Cut = Callable[[torch.Tensor, Decoder, Block], tuple[torch.Tensor, ...]]
"""From a parameter, its decoder and its layer to the tensors that come of it."""


@attrs.frozen
class Split:
    """What comes of a parameter.

    Attributes:
        names: Parameters of a layer, by which gguf's table finds llama.cpp's names.
        cut: Makes their tensors.
    """

    names: tuple[str, ...]
    cut: Cut


def by_heads(tensor: torch.Tensor, decoder: Decoder, block: Block) -> tuple[torch.Tensor, ...]:
    """Cuts queries, keys and values apart."""
    return packed.by_heads(tensor, block.heads, block.kv_heads)


def by_latent(tensor: torch.Tensor, decoder: Decoder, block: Block) -> tuple[torch.Tensor, ...]:
    """Cuts ``[heads * (plain + values), keys]`` into what makes keys, ``[heads, keys, plain]``, and what makes values,
    ``[heads, values, keys]``."""
    assert block.latent is not None, "a layer with such a parameter has one"
    plain, values = tensor.unflatten(0, (block.heads, -1)).split([block.latent.plain, block.latent.values], dim=1)
    return plain.transpose(1, 2), values


def filled_rows(tensor: torch.Tensor, decoder: Decoder, block: Block) -> tuple[torch.Tensor, ...]:
    """Adds rows of zeros to ``[shared, hidden]``, up to a multiple of the width of an expert."""
    return (nn.functional.pad(tensor, (0, 0, 0, -block.shared % block.neurons)),)


def filled_columns(tensor: torch.Tensor, decoder: Decoder, block: Block) -> tuple[torch.Tensor, ...]:
    """Adds columns of zeros to ``[hidden, shared]``, up to a multiple of the width of an expert."""
    return (nn.functional.pad(tensor, (0, -block.shared % block.neurons)),)


PACKED: Mapping[str, Split] = {
    "self_attn.qkv_proj.weight": Split(
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), by_heads
    ),
    "mlp.gate_up_proj.weight": Split(("mlp.gate_proj.weight", "mlp.up_proj.weight"), halves),
}
"""Phi-3's layers as Llama's."""
EXPERTS: Mapping[str, Split] = {
    "mlp.experts.gate_up_proj": Split(("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"), halves),
    "mlp.experts.down_proj": Split(("mlp.experts.down_proj.weight",), whole),
}
"""Experts of which the first half of what comes out is the gate."""
TURNED: Mapping[str, Split] = {
    "mlp.experts.gate_up_proj": Split(("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"), every_other),
    "mlp.experts.gate_up_proj_bias": Split(("mlp.experts.gate_proj.bias", "mlp.experts.up_proj.bias"), every_other),
    "mlp.experts.down_proj": Split(("mlp.experts.down_proj.weight",), turned),
    "mlp.experts.down_proj_bias": Split(("mlp.experts.down_proj.bias",), whole),
}
"""Experts of GPT-OSS."""
LATENT: Mapping[str, Split] = {
    **EXPERTS,
    "self_attn.kv_b_proj.weight": Split(("self_attn.k_b_proj.weight", "self_attn.v_b_proj.weight"), by_latent),
    "mlp.gate.e_score_correction_bias": Split(("mlp.gate.e_score_correction.bias",), whole),
    "mlp.shared_experts.gate_proj.weight": Split(("mlp.shared_experts.gate_proj.weight",), filled_rows),
    "mlp.shared_experts.up_proj.weight": Split(("mlp.shared_experts.up_proj.weight",), filled_rows),
    "mlp.shared_experts.down_proj.weight": Split(("mlp.shared_experts.down_proj.weight",), filled_columns),
}
"""DeepSeek's layers; llama.cpp takes the shared experts as a whole number of experts."""

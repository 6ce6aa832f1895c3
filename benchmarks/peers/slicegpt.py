"""SliceGPT (Ashkboos, Croci, do Nascimento, Hoefler and Hensman, ICLR 2024).

The norms' weights go into what reads them; then ``RMSNorm(x Q) = RMSNorm(x) Q`` for orthogonal Q. The stream before
each attention and MLP is turned onto the principal axes of what its norm puts out on the calibration data, and the
smallest are cut off: with Q the first columns of the axes, weights are ``W Q`` and ``Q^T W``, and the stream changes
from one basis to the next by ``Q_before^T Q_after``, a product of its own in every residual connection. Norms divide by
the full width. The output layer no longer shares the embedding's weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .budget import Budget
from .decoder import Sizes, costs, layers_of
from .evidence import Evidence


class PlainNorm(nn.Module):
    """RMSNorm without weight, of a stream that had ``width`` features before it was cut."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / self.width + self.eps)


class SlicedLayer(nn.Module):
    """A decoder layer whose residual connections change the basis."""

    def __init__(self, layer: Any, norm: PlainNorm) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = layer.self_attn, layer.mlp, norm
        self.attention_shortcut: nn.Module = nn.Identity()
        self.mlp_shortcut: nn.Module = nn.Identity()

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        added, _ = self.self_attn(hidden_states=self.norm(hidden_states), **options)
        stream = self.attention_shortcut(hidden_states) + added
        result: Tensor = self.mlp_shortcut(stream) + self.mlp(self.norm(stream))
        return result


def linear(weight: Tensor) -> nn.Linear:
    """A layer without bias of a weight ``[out, in]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.contiguous())
    return layer


def axes(x: Tensor, count: int) -> Tensor:
    """The principal axes of rows ``[rows, features]`` with the largest second moments, ``[features, count]``."""
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    return vectors.flip(1)[:, :count].to(x.dtype)


def fold(model: Any) -> None:
    """Multiplies the norms' weights into what reads them, and gives the output layer a weight of its own."""
    for layer in layers_of(model):
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            reader.weight.data.mul_(layer.input_layernorm.weight.data)
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight.data.mul_(layer.post_attention_layernorm.weight.data)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * model.model.norm.weight.detach())


def width_within(model: Any, sizes: Sizes, budget: Budget) -> int:
    """The largest width of the stream with which the budget holds."""
    config, whole = model.config, costs(model, sizes.length)
    changes, vocabulary = 2 * sizes.layers, config.vocab_size
    fixed = _products(sizes) if budget.cost == "macs" else 0
    per_feature = (whole["macs"] - _products(sizes)) // sizes.width
    per_feature += vocabulary if budget.cost == "params" else 0
    allowed = budget.whole * budget.part
    return max(w for w in range(sizes.width) if fixed + per_feature * w + changes * w * w <= allowed)


def _products(sizes: Sizes) -> int:
    """MACs per token of attention's products."""
    return 2 * sizes.length * sizes.group * sizes.groups * sizes.layers


@torch.no_grad()
def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    sizes = evidence.sizes
    width = width_within(model, sizes, budget)
    fold(model)
    norm = PlainNorm(sizes.width, model.config.rms_norm_eps)
    ids = torch.cat(evidence.batches)
    embedding = model.model.embed_tokens.weight.detach()
    full = embedding[ids]
    positions = model.model.rotary_emb(full, position_ids=torch.arange(ids.shape[1])[None])
    basis = axes(norm(full).flatten(0, 1), width)
    model.model.embed_tokens = nn.Embedding.from_pretrained(embedding @ basis, freeze=False)
    stream = full @ basis
    for number, layer in enumerate(layers_of(model)):
        sliced = SlicedLayer(layer, norm)
        layers_of(model)[number] = sliced
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(sliced.self_attn, name, linear(getattr(sliced.self_attn, name).weight.detach() @ basis))
        added = torch.cat(
            [
                sliced.self_attn(hidden_states=norm(part), position_embeddings=positions, attention_mask=None)[0]
                for part in stream.split(8)
            ]
        )
        basis, stream, sliced.attention_shortcut = _turn(stream, basis, added, norm, width)
        sliced.self_attn.o_proj = linear(basis.T @ sliced.self_attn.o_proj.weight.detach())
        for name in ("gate_proj", "up_proj"):
            setattr(sliced.mlp, name, linear(getattr(sliced.mlp, name).weight.detach() @ basis))
        added = torch.cat([sliced.mlp(norm(part)) for part in stream.split(8)])
        basis, stream, sliced.mlp_shortcut = _turn(stream, basis, added, norm, width)
        sliced.mlp.down_proj = linear(basis.T @ sliced.mlp.down_proj.weight.detach())
    model.model.norm = norm
    model.lm_head = linear(model.lm_head.weight.detach() @ basis)


def _turn(
    stream: Tensor, basis: Tensor, added: Tensor, norm: PlainNorm, width: int
) -> tuple[Tensor, Tensor, nn.Linear]:
    """Adds to the stream in the full basis, and changes to the principal axes of the sum."""
    full = stream @ basis.T + added
    after = axes(norm(full).flatten(0, 1), width)
    return after, full @ after, linear(after.T @ basis)

"""A Llama-shaped decoder of transformers as the short implementations see it: neurons, groups of heads, layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

Cost = Literal["macs", "params"]


@attrs.frozen
class Sizes:
    """Sizes of an uncut decoder.

    Attributes:
        layers, hidden, groups: Layers; neurons of an MLP; heads of keys, each with the query heads that read it.
        width: Features of the residual stream.
        group: Features of the query heads of one group: columns of the output projection.
        head: Features of one head.
        length: Tokens of a sequence at which attention's products are counted.
    """

    layers: int
    hidden: int
    groups: int
    width: int
    group: int
    head: int
    length: int

    @classmethod
    def of(cls, model: Any, length: int) -> Sizes:
        config = model.config
        repeats = config.num_attention_heads // config.num_key_value_heads
        return cls(
            config.num_hidden_layers,
            config.intermediate_size,
            config.num_key_value_heads,
            config.hidden_size,
            repeats * config.head_dim,
            config.head_dim,
            length,
        )

    def neuron_cost(self) -> int:
        """MACs per token, and parameters, of one neuron of a gated MLP."""
        return 3 * self.width

    def group_cost(self, cost: Cost) -> int:
        """MACs per token, or parameters, of the query heads of one group with their keys and values."""
        weights = 2 * self.width * (self.group + self.head)
        return weights + (2 * self.length * self.group if cost == "macs" else 0)

    def layer_cost(self, cost: Cost) -> int:
        """MACs per token, or parameters, of a whole layer; its norms count as parameters."""
        units = self.hidden * self.neuron_cost() + self.groups * self.group_cost(cost)
        return units + (2 * self.width if cost == "params" else 0)


@attrs.frozen(eq=False)
class Kept:
    """What is left.

    Attributes:
        neurons: ``[layers, hidden]``, bool.
        groups: ``[layers, groups]``, bool.
    """

    neurons: Tensor
    groups: Tensor

    @classmethod
    def everything(cls, sizes: Sizes) -> Kept:
        return cls(
            torch.ones(sizes.layers, sizes.hidden, dtype=torch.bool),
            torch.ones(sizes.layers, sizes.groups, dtype=torch.bool),
        )

    def columns(self, sizes: Sizes, layer: int) -> Tensor:
        """Which columns of a layer's output projection are left, bool ``[groups * group]``."""
        return self.groups[layer].repeat_interleave(sizes.group)


class Nothing(nn.Module):
    """Attention without heads: adds nothing to the stream."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder's layers, in order."""
    layers = model.model.layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def readers(model: Any) -> Iterator[tuple[str, int, nn.Linear]]:
    """The two projections of each layer that write into the stream, with kind and layer."""
    for number, layer in enumerate(layers_of(model)):
        yield "groups", number, layer.self_attn.o_proj
        yield "neurons", number, layer.mlp.down_proj


def costs(model: Any, length: int) -> dict[Cost, int]:
    """Counts a decoder as it is: MACs per token with those of attention and of the output layer, and all parameters.

    The embedding counts as parameters once where it is the output layer as well, and has no MACs.
    """
    macs = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    queries = [module.out_features for name, module in model.named_modules() if name.endswith("q_proj")]
    return {"macs": macs + 2 * length * sum(queries), "params": sum(value.numel() for value in model.parameters())}


def shapes(model: Any) -> list[tuple[int, int]]:
    """Features of the query heads, and neurons, of each layer that is left; 0 where a branch is gone."""
    found = []
    for layer in layers_of(model):
        inside = dict(layer.named_modules())
        queries, down = inside.get("self_attn.q_proj"), inside.get("mlp.down_proj")
        found.append((getattr(queries, "out_features", 0), getattr(down, "in_features", 0)))
    return found


def _resize(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    weight = linear.weight.detach()
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    linear.weight = nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = weight.shape
    if linear.bias is not None and rows is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows].clone())


def cut(model: Any, sizes: Sizes, kept: Kept) -> None:
    """Takes neurons and groups out of a decoder's weights."""
    for number, layer in enumerate(layers_of(model)):
        neurons, groups = kept.neurons[number], kept.groups[number]
        _resize(layer.mlp.gate_proj, rows=neurons)
        _resize(layer.mlp.up_proj, rows=neurons)
        _resize(layer.mlp.down_proj, columns=neurons)
        if not groups.any():
            layer.self_attn = Nothing()
            continue
        queries, keys = kept.columns(sizes, number), groups.repeat_interleave(sizes.head)
        _resize(layer.self_attn.q_proj, rows=queries)
        _resize(layer.self_attn.k_proj, rows=keys)
        _resize(layer.self_attn.v_proj, rows=keys)
        _resize(layer.self_attn.o_proj, columns=queries)


def drop_layers(model: Any, gone: Sequence[int]) -> None:
    """Takes whole layers out."""
    left = [layer for number, layer in enumerate(layers_of(model)) if number not in set(gone)]
    model.model.layers = nn.ModuleList(left)
    model.config.num_hidden_layers = len(left)


def add_bias(linear: nn.Linear, bias: Tensor) -> None:
    """Adds to a layer's bias, or gives it one."""
    before = 0 if linear.bias is None else linear.bias.detach()
    linear.bias = nn.Parameter(before + bias)

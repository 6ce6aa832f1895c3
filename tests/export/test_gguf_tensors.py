"""Tensors of GGUF files, element by element: where each number of a parameter of transformers has to lie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from prunekit_plugins.export.decoder import Block, Decoder, Latent
from prunekit_plugins.export.fixed import GPT_OSS
from prunekit_plugins.export.gguf.families import FORMS
from prunekit_plugins.export.gguf.splits import EXPERTS, LATENT, PACKED, TURNED, Split
from prunekit_plugins.export.gguf.tensors import in_pairs
from prunekit_plugins.export.mlx.families import FAMILIES

NOTHING = cast(Decoder, SimpleNamespace())
"""No split reads the decoder."""


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def cut(split: Split, tensor: torch.Tensor, block: Block) -> dict[str, torch.Tensor]:
    return dict(zip(split.names, split.cut(tensor, NOTHING, block), strict=True))


def test_rows_that_rotate_together_become_neighbours() -> None:
    """Of heads of six rows, four of which rotate: rows 0 and 2, 1 and 3 are pairs; rows 4 and 5 stay."""
    expected = [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert in_pairs(torch.arange(12), 6, 4).tolist() == expected
    weight = numbered(12, 5)
    assert torch.equal(in_pairs(weight, 6, 4), torch.stack([weight[row] for row in expected]))


def test_rows_in_pairs_rotate_to_the_same_scores() -> None:
    """Rotating pairs of neighbours is rotating halves, once the rows are in that order."""
    torch.manual_seed(0)
    query, key, angle = torch.randn(8).double(), torch.randn(8).double(), torch.rand(4).double()

    def halves(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        first, second = x[:4], x[4:]
        return torch.cat([first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin()])

    def pairs(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        found = torch.view_as_complex(x.reshape(4, 2).contiguous()) * torch.polar(torch.ones_like(turns), turns)
        return torch.view_as_real(found).flatten()

    score = halves(query, 3 * angle) @ halves(key, angle)
    ordered = [in_pairs(x, 8, 8) for x in (query, key)]
    torch.testing.assert_close(pairs(ordered[0], 3 * angle) @ pairs(ordered[1], angle), score)


def test_packed_queries_keys_and_values_are_cut_by_heads() -> None:
    block = Block(heads=4, kv_heads=2, neurons=3)
    tensor = numbered(16, 5)  # eight heads of two rows
    found = cut(PACKED["self_attn.qkv_proj.weight"], tensor, block)
    rows = {"q": range(8), "k": range(8, 12), "v": range(12, 16)}
    assert list(found) == [f"self_attn.{name}_proj.weight" for name in rows]
    for name, own in rows.items():
        assert found[f"self_attn.{name}_proj.weight"].tolist() == [tensor[row].tolist() for row in own]


def test_the_first_half_of_stacked_experts_is_the_gate() -> None:
    block = Block(heads=2, kv_heads=2, neurons=3, experts=2)
    tensor = numbered(2, 6, 4)
    found = cut(EXPERTS["mlp.experts.gate_up_proj"], tensor, block)
    gate, up = found["mlp.experts.gate_proj.weight"], found["mlp.experts.up_proj.weight"]
    for expert in range(2):
        for row in range(3):
            assert gate[expert, row].tolist() == tensor[expert, row].tolist()
            assert up[expert, row].tolist() == tensor[expert, row + 3].tolist()
    down = numbered(2, 4, 3)
    assert cut(EXPERTS["mlp.experts.down_proj"], down, block)["mlp.experts.down_proj.weight"] is down


def test_experts_of_gpt_oss_take_turns_and_are_turned() -> None:
    """Columns 0, 2, 4 of ``[experts, in, 2 * out]`` make gates, and 1, 3, 5 what they gate."""
    block = Block(heads=2, kv_heads=2, neurons=3, experts=2)
    tensor, bias, down = numbered(2, 4, 6), numbered(2, 6), numbered(2, 3, 4)
    found = cut(TURNED["mlp.experts.gate_up_proj"], tensor, block)
    biases = cut(TURNED["mlp.experts.gate_up_proj_bias"], bias, block)
    turned = cut(TURNED["mlp.experts.down_proj"], down, block)["mlp.experts.down_proj.weight"]
    for expert in range(2):
        for out in range(3):
            for start, name in enumerate(("gate", "up")):
                column = 2 * out + start
                assert biases[f"mlp.experts.{name}_proj.bias"][expert, out] == bias[expert, column]
                rows = found[f"mlp.experts.{name}_proj.weight"]
                assert rows[expert, out].tolist() == [int(tensor[expert, row, column]) for row in range(4)]
        assert turned[expert].tolist() == [[int(down[expert, row, out]) for row in range(3)] for out in range(4)]


def test_what_makes_keys_and_values_of_a_latent_state_is_cut_head_by_head() -> None:
    latent = Latent(queries=0, keys=5, plain=2, rotated=2, values=3)
    block = Block(heads=4, kv_heads=4, neurons=3, latent=latent)
    tensor = numbered(4 * (2 + 3), 5)
    found = cut(LATENT["self_attn.kv_b_proj.weight"], tensor, block)
    keys, values = found["self_attn.k_b_proj.weight"], found["self_attn.v_b_proj.weight"]
    assert (tuple(keys.shape), tuple(values.shape)) == ((4, 5, 2), (4, 3, 5))
    for head in range(4):
        own = tensor[head * 5 : head * 5 + 5]
        assert all(keys[head, state, dim] == own[dim, state] for state in range(5) for dim in range(2))
        assert values[head].tolist() == own[2:].tolist()


def test_shared_experts_are_filled_with_neurons_that_add_nothing() -> None:
    """Five shared neurons beside experts of three become two experts of three."""
    torch.manual_seed(0)
    block = Block(heads=2, kv_heads=2, neurons=3, experts=4, shared=5)
    names = ("gate", "up", "down")
    weights = {"gate": torch.randn(5, 4), "up": torch.randn(5, 4), "down": torch.randn(4, 5)}
    filled = {
        name: cut(LATENT[f"mlp.shared_experts.{name}_proj.weight"], weights[name], block)[
            f"mlp.shared_experts.{name}_proj.weight"
        ]
        for name in names
    }
    assert [tuple(filled[name].shape) for name in names] == [(6, 4), (6, 4), (4, 6)]

    def run(parts: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        return parts["down"] @ (torch.nn.functional.silu(parts["gate"] @ x) * (parts["up"] @ x))

    x = torch.randn(4)
    torch.testing.assert_close(run(filled, x), run(weights, x))


def test_both_engines_compute_gpt_oss_with_the_same_constants() -> None:
    assert GPT_OSS == {"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)}
    assert FORMS["gpt_oss"].fixed == GPT_OSS
    assert GPT_OSS.items() <= FAMILIES["GptOssForCausalLM"].only.items()

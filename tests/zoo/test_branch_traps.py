"""Models in which it is easy to take a branch out wrongly: each is exact, or refused with the reason."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import prunekit as pk
from tests.zoo.test_branches import IDS, SMALL, transformer

LAYER = ["model.layers.1.self_attn", "model.layers.1.mlp"]


def randomized(model: nn.Module) -> nn.Module:
    """Gives a model weights with which each branch counts."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1)
    return model.eval()


def lengths(model: Any, **flags: bool) -> dict[str, int]:
    outputs = model(input_ids=IDS, use_cache=False, **flags)
    return {name: len(outputs[name]) for name in ("hidden_states", "attentions") if name in outputs}


def test_lists_of_outputs_are_those_of_the_layers_that_are_left() -> None:
    """What the recording wasn't asked for has no entry of a layer that is gone, as in a model that never had it."""
    model = transformer("llama", attn_implementation="eager")
    flags = {"output_hidden_states": True, "output_attentions": True}
    graph = pk.Graph.of(model, {"input_ids": IDS})
    attention, layer = (graph.plan_without(names).apply(copy.deepcopy(model)) for names in (LAYER[:1], LAYER))
    assert lengths(model, **flags) == {"hidden_states": 4, "attentions": 3}  # it has hooks from here on
    assert lengths(attention, **flags) == {"hidden_states": 4, "attentions": 2}
    assert lengths(layer, **flags) == {"hidden_states": 3, "attentions": 2}
    whole, left = (one(input_ids=IDS, output_hidden_states=True).hidden_states for one in (model, layer))
    assert torch.equal(left[1], whole[1])


def test_lists_of_outputs_stay_whole_where_they_are_recorded() -> None:
    model, inputs = transformer("llama").double(), {"input_ids": IDS, "output_hidden_states": True}
    plan = pk.Graph.of(model, inputs).plan_without(LAYER)
    small = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, inputs)
    states = small(**inputs).hidden_states
    assert len(states) == 4
    assert torch.equal(states[1], states[2])


def switched_off(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    """A copy in which some modules run and return zeros: nothing of the library is used for that."""

    def zeros(_: nn.Module, __: Any, result: Any) -> Any:
        if isinstance(result, tuple):
            return torch.zeros_like(result[0]), *result[1:]
        return torch.zeros_like(result)

    off = copy.deepcopy(model)
    for path in paths:
        off.get_submodule(path).register_forward_hook(zeros)
    return off


def first(outputs: Any) -> torch.Tensor:
    found: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    return found


def check_off(model: nn.Module, inputs: Any, branches: list[str], paths: list[str]) -> tuple[pk.Plan, Any]:
    """Prunes a copy and compares it with `switched_off`."""
    plan = pk.Graph.of(model, inputs).plan_without(branches)
    small: Any = plan.apply(copy.deepcopy(model))
    off = switched_off(model, paths)
    with torch.no_grad():
        runs = (one(**inputs) if isinstance(inputs, dict) else one(inputs) for one in (small, off, model))
        found, expected, before = map(first, runs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if found.dtype == torch.float32 else 1e-12)
    assert not torch.allclose(found, before, rtol=0, atol=1e-4)
    return plan, small


ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"


def test_a_layer_that_is_called_for_all_layers_loses_a_branch_in_each() -> None:
    model = transformer("albert").double()
    names = [branch.name for branch in pk.Graph.of(model, {"input_ids": IDS}).branches() if branch.removable]
    assert names == [f"{ALBERT}.attention.query", f"{ALBERT}.ffn"]
    check_off(model, {"input_ids": IDS}, names[:1], [f"{ALBERT}.attention.dense"])
    check_off(model, {"input_ids": IDS}, names[1:], [f"{ALBERT}.ffn_output"])


def test_layers_that_others_read_keys_from_go_on_to_compute_these() -> None:
    """Gemma 3n: the last layers have no keys and values of their own; streams are mixed by matrices (AltUp)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3nTextConfig(
        **{**SMALL, "num_hidden_layers": 4},
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_key_value_heads=2,
        head_dim=16,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    model = randomized(transformers.Gemma3nForCausalLM(config)).double()
    inputs = {"input_ids": IDS, "use_cache": False}
    for layer in range(4):
        name = f"model.layers.{layer}.self_attn"
        plan, _ = check_off(model, inputs, [name], [name])
        gone = {one.split(".")[-2] for one in plan.gone}
        assert {"q_proj", "o_proj"} <= gone
        assert not {"k_proj", "v_proj"} & gone
    obstacles = pk.Graph.of(model, inputs).branch_obstacles()
    assert "what reads it is written in a module that stays" in obstacles["model.layers.0.altup.prediction_coefs"]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_mixer_with_a_state_goes_with_it(layer: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = randomized(transformers.MambaForCausalLM(config))
    inputs = {"input_ids": IDS, "use_cache": False}
    (name,) = (
        branch.name
        for branch in pk.Graph.of(model, inputs).branches()
        if branch.removable and f"layers.{layer}.mixer.in_proj.weight" in str(branch.parameters)
    )
    _, small = check_off(model, inputs, [name], [f"backbone.layers.{layer}.mixer"])
    assert small.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 12)


def test_a_language_model_that_checkpoints_its_layers_trains_on() -> None:
    model: Any = transformer("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it has another name in later versions
        model.gradient_checkpointing_enable({"use_reentrant": False})
    name = "model.layers.1.mlp"
    _, small = check_off(model, {"input_ids": IDS, "use_cache": False}, [name], [name])
    small.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Checkpointed(nn.Module):
    def __init__(self, *, wrapped: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.wrapped = wrapped
        if wrapped:
            self.blocks = nn.ModuleList(map(checkpoint_wrapper, self.blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.wrapped else checkpoint(block, x, use_reentrant=False)
        return x


@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_that_are_computed_again_for_their_gradients_lose_their_branches(wrapped: bool) -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(wrapped=wrapped).double(), torch.randn(2, 3, 8).double()
    name = pk.Graph.of(model, x).branches()[1].name
    _, small = check_off(model, x, [name], [name.replace(".up", ".down")])
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_blocks_behind_one_that_leaves_a_sequence_move_up_with_their_weights() -> None:
    """Layer scale and stochastic depth go with their branch."""
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **options, init_values=0.1, drop_path_rate=0.2)
    model = randomized(model).double()
    x = torch.randn(2, 3, 32, 32).double()
    names = ["blocks.1.attn", "blocks.1.mlp"]
    plan, small = check_off(model, x, names, names)
    assert {"blocks.1.ls1.gamma", "blocks.1.ls2.gamma"} < set(plan.gone)
    left = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.1.")}
    moved = {name.replace("blocks.2.", "blocks.1."): value for name, value in left.items()}
    found = small.state_dict()
    assert found.keys() == moved.keys()
    assert all(torch.equal(found[name], value) for name, value in moved.items())
    small.train()(x)


class UNet(nn.Module):
    """What the encoder summed up is added to what the decoder made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.leave = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x + self.enter(x)
        low = self.down(skip).relu()
        low = low + self.middle(low)
        return self.leave(self.up(low) + skip)


class UViT(nn.Module):
    """Early tokens are joined to late ones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.skip = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = x + self.blocks[0](x)
        late = early + self.blocks[1](early)
        late = self.skip(torch.cat([late, early], -1))
        return late + self.blocks[2](late)


def test_skips_go_on_with_what_is_left() -> None:
    torch.manual_seed(0)
    image, tokens = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 5, 8).double()
    for name in ("enter", "middle"):
        check_off(UNet().double().eval(), image, [name], [name])
    for place in range(3):
        check_off(UViT().double().eval(), tokens, [f"blocks.{place}"], [f"blocks.{place}"])
    with pytest.raises(pk.RehearsalError, match="of other shapes"):  # all that is below the skip
        pk.Graph.of(UNet().double().eval(), image).plan_without(["down"])


def test_what_a_pyramid_adds_up_stays_with_the_reason() -> None:
    pytest.importorskip("torchvision")
    from torchvision.ops import FeaturePyramidNetwork

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
            self.pyramid, self.head = FeaturePyramidNetwork([8, 16, 32], 12), nn.Conv2d(12, 4, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            a = self.a(x).relu()
            b = self.b(a).relu()
            return [self.head(level) for level in self.pyramid({"a": a, "b": b, "c": self.c(b).relu()}).values()]

    graph = pk.Graph.of(Detector().eval(), torch.randn(1, 3, 32, 32))
    names = [branch.name for branch in graph.branches()]
    assert sorted(names) == ["pyramid.inner_blocks.0.0", "pyramid.inner_blocks.1.0"]
    assert set(graph.branch_obstacles()) == set(names)


class Hyper(nn.Module):
    """Hyper-connections: two streams that are mixed by a matrix before each layer's output is added to both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.mixes = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Parameter(torch.randn(2, 2, 2))
        self.gains = nn.Parameter(torch.randn(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        streams = torch.stack([x, x])
        for place, layer in enumerate(self.layers):
            mixed = torch.einsum("nm,nbtd->mbtd", self.mixes[place], streams)
            streams = mixed + self.gains[place][:, None, None, None] * layer(streams.sum(0)).relu()
        return streams.sum(0)


def test_hyper_connections_are_exact_or_stay_with_the_reason() -> None:
    torch.manual_seed(0)
    model, x = Hyper().double().eval(), torch.randn(2, 3, 8).double()
    graph = pk.Graph.of(model, x)
    held = graph.branch_obstacles()
    assert all(held.values())
    for branch in graph.branches():
        if branch.name not in held:
            plan = graph.plan_without([branch.name])
            assert pk.check_exact(model, plan.apply(copy.deepcopy(model)), plan, x)

"""Layers of shipped models leave their lists: what counts them follows, and stock classes load what is left."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.integrations.configuration import update_config
from prunekit_plugins.integrations.huggingface import load_pretrained, save_pretrained
from tests.core.residual import close
from tests.zoo.test_branches import IDS, transformer

LONG = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(2))


class Passing(nn.Module):
    """Stands in for a layer of transformers that adds nothing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.attention_type = kind

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def passing(model: Any, number: int) -> Any:
    """A copy of a decoder in which a layer is switched off by hand; the numbers of the others stay."""
    off = copy.deepcopy(model)
    off.model.layers[number] = Passing(getattr(model.model.layers[number], "attention_type", ""))
    return off


def parts(layer: int) -> list[str]:
    return [f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"]


GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}


def test_kinds_of_layers_follow_though_a_short_recording_does_not_show_them(tmp_path: Path) -> None:
    """Five tokens fit into the window of eight: full and sliding attention compute the same on them."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model: Any = transformer("gemma3", num_hidden_layers=4, sliding_window=8, layer_types=kinds)
    given, off = model.config, passing(model, 2)
    result = pk.prune(model, {"input_ids": IDS[:, :5]}, branches=parts(2), verify="always")
    assert result.verification.check
    assert "model.layers.2 is gone; model.layers.3 is model.layers.2 now" in result.report.notes
    assert model.config.layer_types == [*kinds[:2], kinds[3]]
    assert given.layer_types == kinds  # other models may hold it
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    with torch.no_grad():
        assert close(model(LONG).logits, off(LONG).logits)
        assert len(model(LONG, output_hidden_states=True).hidden_states) == 4
    assert torch.equal(model.generate(LONG, **GREEDY), off.generate(LONG, **GREEDY))
    assert pk.Plan.from_json(result.plan.to_json()) == result.plan
    save_pretrained(model, tmp_path / "plan", plan=result.plan)  # with the configuration of the whole model
    loaded: Any = load_pretrained(tmp_path / "plan")
    assert torch.equal(loaded(LONG).logits, model(LONG).logits)
    update = update_config(model, result.plan, {"input_ids": IDS[:, :5], "use_cache": False})
    assert (update.changed, update.notes) == ({"num_hidden_layers": (4, 3), "layer_types": (4, 3)}, ())
    model.save_pretrained(tmp_path / "stock")
    stock: Any = type(model).from_pretrained(tmp_path / "stock").eval()
    assert torch.equal(stock(LONG).logits, model(LONG).logits)
    assert torch.equal(stock.generate(LONG, **GREEDY), model.generate(LONG, **GREEDY))


def test_attentions_and_layers_go_in_steps_with_widths() -> None:
    model: Any = transformer("llama", num_hidden_layers=5).double()
    original, x = copy.deepcopy(model), {"input_ids": IDS}
    graph = pk.Graph.of(model, x)
    first = graph.apply(graph.plan_without(["model.layers.3.self_attn"]))
    assert not first.entries
    second = graph.apply(graph.plan_without(parts(1)))
    (width,) = {len(graph.remaining(name)) for name in graph.analysis.groups if name.endswith("mlp.gate_proj")}
    kept = {"model.layers.4.mlp.gate_proj": tuple(range(0, width, 2))}
    third = graph.apply(graph.draft(kept))
    last = graph.apply(graph.plan_without(parts(4)))
    assert [plan.entries.deletions[0].entries for plan in (second, third, last)] == [(1,), (1,), (1, 4)]
    assert model.model.layers[2].mlp.gate_proj.out_features == width
    assert [layer.self_attn.layer_idx for n, layer in enumerate(model.model.layers) if n != 2] == [0, 1]
    for plan in (second, third, last):
        small: Any = plan.apply(copy.deepcopy(original))
        assert pk.check_exact(original, small, plan, x)
    off = passing(passing(original, 4), 1)
    off.model.layers[3].self_attn.o_proj.weight.data.zero_()
    assert torch.equal(model.generate(IDS, **GREEDY), off.generate(IDS, **GREEDY))
    steps = copy.deepcopy(original)
    for before, after in ((pk.Plan(), first), (first, second), (second, third), (third, last)):
        (after.since(before) if not before.empty else after).apply(steps)
    assert torch.equal(steps(IDS).logits, model(IDS).logits)


def test_a_plan_of_the_smaller_model_composes_with_the_one_that_led_to_it() -> None:
    model: Any = transformer("llama", num_hidden_layers=4)
    x = {"input_ids": IDS}
    first = pk.Graph.of(model, x).plan_without(parts(1))
    small: Any = first.apply(copy.deepcopy(model))
    graph = pk.Graph.of(small, x)
    assert [branch.name for branch in graph.branches()] == [name for layer in range(3) for name in parts(layer)]
    later = graph.plan_without([*parts(1), "model.layers.2.mlp"])
    both = first.then(later)
    assert both.absent == (*parts(1), *parts(2), "model.layers.3.mlp")
    expected: Any = later.apply(copy.deepcopy(small))
    once: Any = pk.Plan.from_json(both.to_json()).apply(copy.deepcopy(model))
    assert torch.equal(once(IDS).logits, expected(IDS).logits)
    assert [*once.state_dict()] == [*expected.state_dict()]
    assert both.since(first) == later
    assert pk.check_exact(model, once, both, x)


@pytest.mark.parametrize("depth", [3])
def test_keys_of_timm_shift_and_a_shallower_model_loads_them(depth: int, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "num_classes": 5}

    def build(blocks: int) -> Any:
        torch.manual_seed(0)
        return timm.models.VisionTransformer(depth=blocks, **arguments).double().eval()

    model, x = build(depth + 1), torch.randn(2, 3, 16, 16).double()
    off = copy.deepcopy(model)
    off.blocks[1] = nn.Identity()
    result = pk.prune(model, x, branches=["blocks.1.attn", "blocks.1.mlp"], verify="always")
    assert isinstance(model.blocks, nn.Sequential)
    assert len(model.blocks) == depth
    assert close(model(x), off(x))
    shallow = build(depth)
    shallow.load_state_dict(model.state_dict())
    assert torch.equal(shallow(x), model(x))
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    assert torch.equal(pk.load(build(depth + 1), tmp_path / "small.safetensors")(x), model(x))
    features = list(off.forward_intermediates(x, indices=[0, 2, 3])[1])
    for one, other in zip(features, model.forward_intermediates(x, indices=[0, 1, 2])[1], strict=True):
        assert close(one, other)


def test_numbers_in_names_of_torchvision_shift(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models

    def build(layers: int) -> Any:
        torch.manual_seed(0)
        made = models.VisionTransformer(16, 8, layers, 2, 16, 32, num_classes=5)
        nn.init.normal_(made.heads.head.weight)
        return made.double().eval()

    model, x = build(4), torch.randn(2, 3, 16, 16).double()
    original, off = copy.deepcopy(model), copy.deepcopy(model)
    off.encoder.layers[1] = nn.Identity()
    graph = pk.Graph.of(model, x)
    names = [f"encoder.layers.encoder_layer_{number}" for number in range(4)]
    first = graph.apply(graph.plan_without([f"{names[1]}.self_attention", f"{names[1]}.mlp"]))
    assert close(model(x), off(x))
    assert [*model.encoder.layers._modules] == [f"encoder_layer_{number}" for number in range(3)]
    note = f"{names[1]} is gone; {names[2]} to 3 are {names[1]} to 2 now"
    assert note in graph.report().notes
    stock = build(3)
    stock.load_state_dict(model.state_dict())
    assert torch.equal(stock(x), model(x))
    both = graph.apply(graph.plan_without([f"{names[3]}.self_attention", f"{names[3]}.mlp"]))
    for plan in (first, both, first.then(both.since(first))):
        assert pk.Plan.from_json(plan.to_json()) == plan
        assert pk.check_exact(original, plan.apply(copy.deepcopy(original)), plan, x)
    pk.save(original, tmp_path / "dense.safetensors")
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", both)
    assert torch.equal(pk.load(build(4), tmp_path / "small.safetensors")(x), model(x))
    data = json.loads(both.to_json())
    data["absent"]["entries"]["lists"]["encoder.layers"][3] = "layer_"
    with pytest.raises(pk.PlanError, match="it is no list of 4 modules"):
        pk.Plan.from_json(json.dumps(data)).apply(original)


def test_features_that_are_taken_by_number_keep_layers_in_their_list() -> None:
    """A backbone that hands out features behind layers 1 and 3: those before them stay, as stand-ins; the last goes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=16, patch_size=8, out_indices=[1, 2]
    )
    model, x = transformers.Dinov2Backbone(config).double().eval(), {"pixel_values": torch.randn(1, 3, 16, 16).double()}
    graph = pk.Graph.of(model, x)
    removable = [branch.name for branch in graph.branches() if branch.removable]
    layer = [name for name in removable if ".layer.0." in name]
    plan = graph.plan_without(layer)
    small = plan.apply(copy.deepcopy(model))
    assert not plan.entries
    assert pk.check_exact(model, small, plan, x)


def test_whole_layers_of_an_encoder_and_a_decoder_leave() -> None:
    model: Any = transformer("t5").double()
    x = {"input_ids": IDS, "decoder_input_ids": IDS}
    graph = pk.Graph.of(model, x)
    going = [b.name for b in graph.branches() if b.name.startswith(("encoder.block.1.", "decoder.block.1."))]
    plan = graph.plan_without(going)
    small: Any = plan.apply(copy.deepcopy(model))
    assert (len(small.encoder.block), len(small.decoder.block)) == (2, 2)
    assert pk.check_exact(model, small, plan, x)
    update = update_config(small, plan, x)
    assert (update.changed, update.notes) == ({"num_layers": (3, 2), "num_decoder_layers": (3, 2)}, ())
    stock: Any = type(small)(small.config).double().eval()
    stock.load_state_dict(small.state_dict())
    start = {**GREEDY, "decoder_start_token_id": 0}
    assert torch.equal(stock.generate(IDS, **start), small.generate(IDS, **start))

"""Weights that take over what removed branches added, compared with least squares on activations from hooks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import prunekit as pk
from prunekit_core.rehearse.removals import draft_without
from prunekit_plugins.compensation import LeastSquares
from prunekit_plugins.compensation.takeovers import NOTHING_BESIDE, Takeover, find_takeovers
from tests.core.residual import PostNorms, small_vit
from tests.core.test_entries import made as decoder
from tests.models import small_llama

EXACT = LeastSquares([1e-11], shrink=False)
"""A ridge that changes nothing, and nothing else that does."""


def seen(model: nn.Module, x: Tensor, *names: str) -> list[Tensor]:
    """What some modules are given first."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: found.update({name: given[0].clone()})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in names]


def fitted(features: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias by which rows of features come closest to rows of the goal."""
    rows = torch.cat([features, features.new_ones(len(features), 1)], 1)
    solution = torch.linalg.lstsq(rows, goal, driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def error(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = original(x)
        return float((model(x) - expected).square().sum() / expected.square().sum())


def pruned(model: nn.Module, x: Tensor, branches: list[str], **options: Any) -> tuple[Any, pk.PruneResult]:
    copied = copy.deepcopy(model)
    defaults: dict[str, Any] = {"calibration": [x], "compensation": [EXACT], "reestimate_batchnorm": False}
    return copied, pk.prune(copied, x[:2], branches=branches, **{**defaults, **options})


@pytest.mark.parametrize(
    ("branches", "behind"),
    [(["layers.1.attn"], "layers.1.norm2"), (["layers.1.attn", "layers.1.mlp"], "layers.2.norm1")],
    ids=["one", "run"],
)
def test_the_last_layer_before_a_removed_run_makes_up_for_all_of_it(branches: list[str], behind: str) -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    small, result = pruned(model, x, branches)
    read, stream, goal = seen(model, x, "layers.0.mlp.2", "layers.0.norm2", behind)
    weight, bias = fitted(read.flatten(0, 1), (goal - stream).flatten(0, 1))
    assert off(small.layers[0].mlp[2].weight, weight) < 1e-6
    assert off(small.layers[0].mlp[2].bias, bias) < 1e-6
    done = result.compensation
    assert done is not None
    assert [repair.consumer for repair in done.layers] == ["layers.0.mlp.2.weight"]
    assert done.left == {}
    plain, _ = pruned(model, x, branches, compensation=None)
    fresh = torch.randn(60, 3, 8, 8).double()
    assert error(small, model, fresh) < 0.2 * error(plain, model, fresh)
    assert error(small, model, x) == pytest.approx(done.output_error[1])
    others = {name for name, value in small.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert others == {"layers.0.mlp.2.weight", "layers.0.mlp.2.bias"}


def test_the_next_layer_makes_up_for_it_where_there_is_none_before() -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    small, _ = pruned(model, x, ["layers.0.attn"])
    plain, _ = pruned(model, x, ["layers.0.attn"], compensation=None)
    read, stream = seen(plain, x, "layers.0.mlp.2", "layers.0.norm2")
    (goal,) = seen(model, x, "layers.1.norm1")
    weight, bias = fitted(read.flatten(0, 1), (goal - stream).flatten(0, 1))
    assert off(small.layers[0].mlp[2].weight, weight) < 1e-6
    assert off(small.layers[0].mlp[2].bias, bias) < 1e-6


def test_two_runs_are_fitted_one_after_the_other() -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    small, result = pruned(model, x, ["layers.0.attn", "layers.1.mlp"], stages=1)
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == [
        "layers.0.mlp.2.weight",
        "layers.1.attn.proj.weight",
    ]
    read, stream = seen(small, x, "layers.1.attn.proj", "layers.1.norm1")
    (goal,) = seen(model, x, "layers.2.norm1")
    weight, _ = fitted(read.flatten(0, 1), (goal - stream).flatten(0, 1))
    assert off(small.layers[1].attn.proj.weight, weight) < 1e-6


class Block(nn.Module):
    """``relu(norm(conv(x)) + x)``, or with a projection in the place of ``x``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.side = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.second(F.relu(self.first(x))))
        return F.relu(out + (x if self.side is None else self.side(x)), inplace=True)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(8, 4)
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 6), Block(6, 8), Block(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def blocks() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model, x = Blocks().double(), torch.randn(20, 3, 6, 6).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def rows(feature_map: Tensor) -> Tensor:
    """``[batch, channels, height, width]`` to ``[positions, channels]``."""
    return feature_map.movedim(1, -1).flatten(0, 2)


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return factor, norm.bias - norm.running_mean * factor


def test_a_convolution_before_a_norm_and_a_relu_makes_up_for_a_residual_block() -> None:
    model, x = blocks()
    small, _ = pruned(model, x, ["blocks.1.first"])
    read, stream = seen(model, x, "blocks.0.second", "blocks.0.first")
    with torch.no_grad():
        block = model.blocks[0]
        before = block.norm(block.second(read)) + stream
        after = model.blocks[1].norm(model.blocks[1].second(F.relu(model.blocks[1].first(F.relu(before)))))
        after += F.relu(before)
        goal = torch.where((after > 0) | (before > 0), after.relu(), before)
        columns = F.unfold(read, 3, padding=1).transpose(1, 2).flatten(0, 1)
        weight, shift = fitted(columns, rows(goal - stream))
        factor, base = norm_affine(small.blocks[0].norm)
    found = small.blocks[0].second.weight.flatten(1)
    assert off(found * factor[:, None], weight) < 1e-6
    assert off(base, shift) < 1e-6
    assert torch.equal(factor, norm_affine(model.blocks[0].norm)[0])
    plain, _ = pruned(model, x, ["blocks.1.first"], compensation=None)
    assert error(small, model, x) < 0.7 * error(plain, model, x)


def test_a_projection_makes_up_for_the_branch_beside_it() -> None:
    torch.manual_seed(0)
    model: Any = torchvision.models.resnet18(num_classes=4).double().eval()
    x = torch.randn(10, 3, 32, 32).double()
    small, result = pruned(model, x, ["layer2.0.conv1"])
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == ["layer2.0.downsample.0.weight"]
    (read,) = seen(model, x, "layer2.0")
    with torch.no_grad():
        block = model.layer2[0]
        whole = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(read))))) + block.downsample(read)
    weight, shift = fitted(rows(read[..., ::2, ::2]), rows(whole))
    conv, norm = small.layer2[0].downsample
    factor, base = norm_affine(norm)
    assert off(conv.weight.flatten(1) * factor[:, None], weight) < 1e-6
    assert off(base, shift) < 1e-6


def test_channels_that_a_norm_multiplies_by_zero_stay_as_they_are() -> None:
    model, x = blocks()
    with torch.no_grad():
        model.blocks[0].norm.weight[2] = 0
    small, _ = pruned(model, x, ["blocks.1.first"])
    found, before = small.blocks[0], model.blocks[0]
    assert torch.equal(found.second.weight[2], before.second.weight[2])
    assert found.norm.running_mean[2] == before.norm.running_mean[2]
    assert not torch.equal(found.second.weight[1], before.second.weight[1])


def test_batch_norms_are_estimated_anew_where_branches_go() -> None:
    model, x = blocks()
    _, result = pruned(model, x, ["blocks.0.first"], compensation=None, reestimate_batchnorm=True)
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == ["4 batch norms"]
    assert result.compensation.output_error[1] <= result.compensation.output_error[0]


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)).cumsum(1))


class Parallel(nn.Module):
    """``x + (feed-forward + attention)``, as GPT-NeoX adds."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.mix = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)), Mix()

    def forward(self, x: Tensor) -> Tensor:
        return (self.mlp(x) + self.mix(x)) + x


class Parallels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Parallel() for _ in range(3)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("gone", [["layers.1.mix"], ["layers.2"], ["layers.1.mix", "layers.2"]], ids="+".join)
def test_sums_of_several_branches_are_followed(gone: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Parallels().double().eval(), torch.randn(80, 4, 6).double()
    small, _ = pruned(model, x, gone)
    last = "layers.1.mlp.2" if "layers.1.mix" in gone else "layers.1.mix.outer"
    read, stream = seen(model, x, last, "layers.1.mlp.0")
    (goal,) = seen(model, x, "head") if "layers.2" in gone else seen(model, x, "layers.2.mlp.0")
    rest = stream if "layers.1.mix" in gone else stream + model.layers[1].mlp(stream)
    weight, bias = fitted(read.flatten(0, 1), (goal - rest).detach().flatten(0, 1))
    assert off(small.get_submodule(last).weight, weight) < 1e-6
    assert off(small.get_submodule(last).bias, bias) < 1e-6


class Signs(nn.Module):
    """``x + a(x) + b(x)``, where ``b`` adds the opposite where the last feature is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x[..., :4] * 0 + 0.1 * x.abs())
        return self.head(x + torch.tanh(self.b(x)))


def test_a_fit_that_is_worse_on_held_out_examples_is_left_out() -> None:
    torch.manual_seed(0)
    model = Signs().double().eval()
    with torch.no_grad():
        model.b.weight.copy_(torch.eye(4).double() * 50)
        model.a.weight.zero_()
    x = torch.rand(50, 4).double() + 1
    x[4::5] *= -1  # one in five is held out
    small, result = pruned(model, x, ["b"], compensation=[LeastSquares()])
    plain, _ = pruned(model, x, ["b"], compensation=None)
    assert result.compensation is not None
    assert result.compensation.layers == ()
    assert result.compensation.left["a.weight"].startswith("least_squares would make it worse (error ")
    assert "a.weight: least_squares would make it worse" in str(result)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), plain.parameters(), strict=True))
    x[4::5] *= -1
    small, result = pruned(model, x, ["b"], compensation=[LeastSquares()])
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == ["a.weight"]


class Tapped(nn.Module):
    """Two blocks; what is between them is an output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        between = x + self.first(x).tanh() * 1.0
        between = between + self.second(between.cos())
        return between, between + self.third(between.sin())


def test_a_stream_that_something_else_reads_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = Tapped().double().eval(), torch.randn(60, 6).double()
    small, result = pruned(model, x, ["third"])
    assert result.compensation is not None
    assert result.compensation.left == {"third": NOTHING_BESIDE}
    assert torch.equal(small(x)[0], model(x)[0])


def test_norms_behind_sums_are_no_way_and_reported() -> None:
    torch.manual_seed(0)
    model, x = PostNorms().double().eval(), torch.randn(60, 8).double()
    _, result = pruned(model, x, ["blocks.1.up"])
    assert result.compensation is not None
    assert result.compensation.left == {"blocks.1.up": NOTHING_BESIDE}
    assert f"  blocks.1.up: {NOTHING_BESIDE}" in str(result).splitlines()


def test_units_and_branches_are_made_up_for_together() -> None:
    model, _ = small_vit()
    x = torch.randn(80, 3, 8, 8).double()
    options = {"ratio": 0.25, "importance": "magnitude", "ignored_layers": ["patches"]}
    small, result = pruned(model, x, ["layers.1.attn"], **options)
    plain, _ = pruned(model, x, ["layers.1.attn"], compensation=None, **options)
    assert error(small, model, x) < 0.2 * error(plain, model, x)
    assert small.layers[0].mlp[0].weight.shape == (12, 8)
    read, stream = seen(small, x, "layers.0.mlp.2", "layers.0.norm2")
    (goal,) = seen(model, x, "layers.1.norm2")
    weight, _ = fitted(read.flatten(0, 1), (goal - stream).flatten(0, 1))
    assert off(small.layers[0].mlp[2].weight, weight) < 1e-6
    assert result.compensation is not None


def test_a_compensated_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    small, result = pruned(model, x, ["layers.1.attn", "layers.1.mlp"])
    pk.save(small, tmp_path / "small.safetensors", plan=result.plan)
    again = pk.load(copy.deepcopy(model), tmp_path / "small.safetensors")
    assert torch.equal(again(x), small(x))


def test_after_an_error_nothing_has_changed() -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fails(repair: Any) -> None:
        raise ValueError("no")

    with pytest.raises(pk.PluginError, match="A compensator failed"):
        pk.prune(model, x[:2], branches=["layers.1.attn"], calibration=[x], compensation=[EXACT, fails])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(model.layers[1].attn).__name__ == "Attention"


def test_compensate_does_it_for_a_model_that_was_pruned_before() -> None:
    model, _ = small_vit()
    x = torch.randn(60, 3, 8, 8).double()
    expected, _ = pruned(model, x, ["layers.1.attn"])
    plain, result = pruned(model, x, ["layers.1.attn"], compensation=None)
    done = pk.compensate(plain, result.plan, [x], original=model, methods=[EXACT])
    assert [one.consumer for one in done.layers] == ["layers.0.mlp.2.weight"]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), expected.parameters(), strict=True))


def test_entries_that_leave_their_list_give_the_others_new_names() -> None:
    model, _, graph = decoder("plain", "plain", "plain")
    plan = draft_without(model, graph.drafts, ["layers.1.key"])
    assert plan.entries
    small: Any = plan.apply(copy.deepcopy(model))
    data = torch.randn(40, 5, 8).double()
    done = pk.compensate(small, plan, [data], original=model, methods=[EXACT])
    assert [one.consumer for one in done.layers] == ["layers.0.out.weight"]
    (goal,) = seen_calls(model.layers[1], model, data)
    read, stream = seen(small, data, "layers.0.out", "layers.0")
    weight, _ = fitted(read.flatten(0, 1), (goal - stream).flatten(0, 1))
    assert off(small.layers[0].out.weight, weight) < 1e-6


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_what_was_fitted_is_given_to_layers_that_get_other_numbers(layer: int, ratio: float) -> None:
    model, _ = small_vit()
    x, branches = torch.randn(60, 3, 8, 8).double(), [f"layers.{layer}.attn", f"layers.{layer}.mlp"]
    small, result = pruned(model, x, branches, ratio=ratio)
    whole, _ = pruned(model, x, branches, ratio=ratio, keep_names=True)
    assert (len(small.layers), len(whole.layers)) == (2, 3)
    assert torch.equal(small(x), whole(x))
    assert result.compensation is not None
    assert error(small, model, x) == pytest.approx(result.compensation.output_error[1])
    assert result.compensation.output_error[1] < 0.2 * result.compensation.output_error[0]


def seen_calls(module: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    """What a module returns."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, given, result: found.append(result))
    with torch.no_grad():
        model(x)
    hook.remove()
    return found


def test_a_language_model_decodes_with_what_was_fitted() -> None:
    model = small_llama(initializer_range=0.3)
    tokens = {"input_ids": torch.randint(64, (30, 12))}
    small = copy.deepcopy(model)
    gone = ["model.layers.1.self_attn", "model.layers.1.mlp"]
    result = pk.prune(small, tokens, branches=gone, calibration=[tokens])
    assert result.compensation is not None
    assert [one.consumer for one in result.compensation.layers] == ["model.layers.0.mlp.down_proj.weight"]
    assert result.compensation.output_error[1] < 0.8 * result.compensation.output_error[0]
    whole = small.generate(tokens["input_ids"], max_new_tokens=3, do_sample=False)
    slow = small.generate(tokens["input_ids"], max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(whole, slow)


def takeovers(model: nn.Module, inputs: Any, *absent: str) -> tuple[list[Takeover], dict[str, str]]:
    graph = pk.Graph.of(model.eval(), inputs)
    return find_takeovers(graph.branch_analysis, graph.branches(), absent, graph.registry.op_rules)


RESNET: list[tuple[tuple[str, ...], list[tuple[str, int, bool]]]] = [
    (("layer1.0.conv1",), [("layer1.1.conv2.weight", 1, False)]),
    (("layer1.1.conv1",), [("layer1.0.conv2.weight", 1, True)]),
    (("layer2.0.conv1",), [("layer2.0.downsample.0.weight", 0, False)]),
    (("layer2.0.downsample",), [("layer2.0.conv2.weight", 0, False)]),
    (("layer2.1.conv1",), [("layer2.0.downsample.0.weight", 1, True)]),
    (("layer1.0.conv1", "layer1.1.conv1"), []),
]


@pytest.mark.parametrize(("absent", "expected"), RESNET, ids=lambda value: "+".join(map(str, value)))
def test_who_takes_over_in_a_resnet(absent: tuple[str, ...], expected: list[tuple[str, int, bool]]) -> None:
    torch.manual_seed(0)
    found, left = takeovers(torchvision.models.resnet18(num_classes=4), torch.randn(1, 3, 32, 32), *absent)
    assert [(one.parameter, one.sums, one.rectified is not None) for one in found] == expected
    assert set(left) == (set() if expected else set(absent))

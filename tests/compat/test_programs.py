"""Programs as users of Torch-Pruning write them, with nothing but the import changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
import prunekit_plugins.compat.torch_pruning as tp
from tests.compat.models import Decoder, Scale, Segmenter, SelfAttention, VisionTransformer
from tests.models import Residual

torchvision = pytest.importorskip("torchvision")


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


PICTURE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# -- classification


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_a_classifier(scope: str) -> None:
    model = resnet()
    original = copy.deepcopy(model)
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    macs, params = tp.utils.count_ops_and_params(model, PICTURE)
    pruner = tp.pruner.MagnitudePruner(
        model,
        PICTURE,
        tp.importance.MagnitudeImportance(p=2),
        scope != "local",
        0.5,
        ignored_layers=ignored,
        isomorphic=scope == "isomorphic",
        round_to=8,
    )
    pruner.step()
    after_macs, after_params = tp.utils.count_ops_and_params(model, PICTURE)
    assert params == sum(p.numel() for p in original.parameters())
    assert after_params == sum(p.numel() for p in model.parameters())
    assert after_params / params < 0.45
    assert after_macs / macs < 0.65
    assert model(PICTURE).shape == (1, 10)
    sizes = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert sizes == {32, 64, 128, 256} if scope == "local" else all(size % 8 == 0 for size in sizes)
    assert pk.check_exact(original, model, pruner.graph.applied, PICTURE)


def test_steps_with_a_schedule_and_single_ratios() -> None:
    model = resnet()
    pruner = tp.pruner.BasePruner(
        model,
        PICTURE,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=0.5,
        pruning_ratio_dict={model.layer4[1].conv1: 0.25, (model.layer3[0].conv1, model.layer3[1].conv1): 0.75},
        iterative_steps=4,
        iterative_pruning_ratio_scheduler=lambda ratio, steps: [
            ratio * (1 - (1 - i / steps) ** 3) for i in range(steps + 1)
        ],
        ignored_layers=[model.fc, model.layer1],
    )
    sizes = []
    for _ in range(4):
        pruner.step()
        sizes.append((model.layer2[0].conv1.out_channels, model.layer4[1].conv1.out_channels))
    assert sizes == [(91, 438), (72, 400), (65, 386), (64, 384)]  # 128 (1 - r) and 512 (1 - r / 2), rounded down
    assert model.layer1[0].conv1.out_channels == model.conv1.out_channels == 64
    both = model.layer3[0].conv1.out_channels + model.layer3[1].conv1.out_channels
    assert both == 128
    assert pruner.get_target_pruning_ratio(model.layer4[1].conv1) == pytest.approx(0.25)
    assert pruner.get_target_pruning_ratio(model.layer2[0].conv1, 1) == pytest.approx(0.5 * (1 - 0.75**3))


@pytest.mark.slow
def test_until_a_speed_up_is_reached() -> None:
    model = resnet()
    pruner = tp.pruner.MagnitudePruner(
        model,
        PICTURE,
        importance=tp.importance.LAMPImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=20,
        ignored_layers=[model.fc],
    )
    before, _ = tp.utils.count_ops_and_params(model, PICTURE)
    speed_up = 1.0
    while speed_up < 2 and pruner.current_step < pruner.iterative_steps:
        pruner.step(interactive=False)
        speed_up = before / tp.utils.count_ops_and_params(model, PICTURE)[0]
    assert 2 <= speed_up < 3
    assert pruner.current_step < 20
    assert all(m.out_channels >= 6 for m in model.modules() if isinstance(m, nn.Conv2d))


def test_interactive_steps() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    pruner = tp.pruner.MetaPruner(
        model, x, tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=[model.fc]
    )
    seen = []
    for group in pruner.step(interactive=True):
        dep, idxs = group[0]
        assert dep.target.module is dep.layer
        assert dep.pruning_fn in (tp.prune_conv_out_channels,)
        seen.append((dep.layer, list(idxs)))
        if dep.layer is model.conv2:
            group.prune(idxs=idxs[:2])
        else:
            group.prune()
    assert [(layer, len(idxs)) for layer, idxs in seen] == [(model.conv1, 4), (model.conv2, 6)]
    assert (model.conv1.out_channels, model.conv2.out_channels, model.conv3.out_channels) == (4, 10, 4)
    assert model(x).shape == (2, 5)


# -- groups by hand


def test_a_group_by_hand() -> None:
    model, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    original = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    group = graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, idxs=[2, 6])
    found = {(dep.layer, dep.handler): idxs for dep, idxs in group}
    assert found == {
        (model.conv1, tp.prune_conv_out_channels): [2, 6],
        (model.bn1, tp.prune_batchnorm_out_channels): [2, 6],
        (model.conv3, tp.prune_conv_out_channels): [2, 6],
        (model.bn3, tp.prune_batchnorm_out_channels): [2, 6],
        (model.conv2, tp.prune_conv_in_channels): [2, 6],
        (model.fc, tp.prune_linear_in_channels): [2, 6],
    }
    assert group[0].dep.source.module is group[0].dep.target.module is model.conv1
    assert all(item.root_idxs == [2, 6] for item in group)
    assert all(item.dep.is_triggered_by(tp.prune_conv_out_channels) for item in group)
    assert group.has_dep(group[1].dep)
    assert group.has_pruning_op(group[1].dep, [2])
    assert not group.has_pruning_op(group[1].dep, [3])
    assert "prune_conv_out_channels on conv1" in str(group)
    assert "idxs (2) = [2, 6]" in group.details()
    assert graph.check_pruning_group(group)
    group.prune()
    assert (model.conv1.out_channels, model.conv2.in_channels, model.fc.in_features) == (6, 6, 6)
    assert pk.check_exact(original, model, graph.applied, x)
    assert [tuple(entry) for entry in graph.pruning_history()] == [("conv1", True, [2, 6])]


def test_all_channels_may_be_looked_at_but_not_removed() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    graph = tp.DependencyGraph().build_dependency(model, x)
    group = graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, list(range(8)))
    assert not graph.check_pruning_group(group)
    scores = tp.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first")(group)
    assert torch.allclose(scores, model.conv1.weight.abs().flatten(1).sum(1))
    with pytest.raises(pk.UnitsError):
        group.prune()
    inner = graph.get_pruning_group(model.conv3, tp.prune_conv_in_channels, list(range(12)))
    assert {dep.layer for dep, _ in inner} == {model.conv2, model.bn2, model.conv3}


def test_all_groups() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    graph = tp.DependencyGraph().build_dependency(model, x)
    groups = list(graph.get_all_groups(ignored_layers=[model.conv1], root_module_types=[nn.Conv2d, nn.Linear]))
    assert [(group[0].dep.layer, len(group[0].idxs)) for group in groups] == [(model.conv2, 12)]
    groups[0].prune(idxs=[0, 11])
    assert model.conv2.out_channels == model.bn2.num_features == model.conv3.in_channels == 10
    assert list(graph.get_all_groups(root_module_types=[nn.Embedding])) == []


def test_root_idxs_of_a_flattened_map() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 3, 2, 2))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [6, 2])
    last = next(item for item in group if item.dep.layer is model[3])
    assert last.idxs == [8, 9, 10, 11, 24, 25, 26, 27]
    assert last.root_idxs == [2, 2, 2, 2, 6, 6, 6, 6]
    weight = model[3].weight.abs().sum(0).view(8, 4).sum(1)
    importance = tp.importance.MagnitudeImportance(p=1, normalizer=None, target_types=[nn.Linear])
    assert torch.allclose(importance(group), weight[[6, 2]])


def test_a_layer_by_itself() -> None:
    layer = nn.Conv2d(3, 8, 3)
    weight = layer.weight.detach().clone()
    assert tp.prune_conv_out_channels(layer, idxs=[1, 7]) is layer
    assert torch.equal(layer.weight, weight[[0, 2, 3, 4, 5, 6]])
    other = tp.PrunerBox[tp.ops.OPTYPE.CONV](layer, [0], to_output=False, inplace=False)
    assert (layer.in_channels, other.in_channels) == (3, 2)
    assert tp.PrunerBox[tp.ops.OPTYPE.CONV](layer, [0], dry_run=True).out_channels == 6
    with pytest.raises(pk.UnitsError):
        tp.PrunerBox[tp.ops.OPTYPE.CONV](layer, [6], dry_run=True)
    parameter = nn.Parameter(torch.arange(12.0).view(3, 4))
    tp.prune_parameter_out_channels(parameter, [1])
    assert parameter[0].tolist() == [0, 2, 3]
    tp.function.ParameterPruner(0).prune_out_channels(parameter, [0])
    assert parameter[0].tolist() == [4, 6, 7]


def test_channels_of_layers() -> None:
    model, x = VisionTransformer(), torch.randn(2, 3, 16, 16)
    graph = tp.DependencyGraph().build_dependency(model, x)
    attention = model.blocks[0].attn
    assert (graph.get_out_channels(attention.qkv), graph.get_in_channels(attention.qkv)) == (96, 32)
    assert graph.get_out_channels(model.cls) == 32
    assert graph.get_out_channels(nn.ReLU()) is None
    assert graph.get_out_channels(graph.module2node[model.patches]) == 32
    assert graph.is_out_channel_pruning_fn(tp.prune_linear_out_channels)
    assert not graph.is_in_channel_pruning_fn(tp.prune_linear_out_channels)
    assert graph.get_pruner_of_module(model.norm) is tp.PrunerBox[tp.ops.OPTYPE.LN]
    names = [node.name.split(" ")[0] for node in graph.module2node[model.blocks[0].fc2].inputs]
    assert names == ["blocks.0.fc1"]


# -- transformers


@pytest.mark.parametrize("whole_heads", [False, True])
def test_a_vision_transformer(whole_heads: bool) -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(2, 3, 16, 16)
    original = copy.deepcopy(model)
    heads = {m.qkv: m.num_heads for m in model.modules() if isinstance(m, SelfAttention)}
    pruner = tp.pruner.MetaPruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.head],
        num_heads=heads,
        prune_head_dims=not whole_heads,
        prune_num_heads=whole_heads,
        head_pruning_ratio=0.5 if whole_heads else 0.0,
        unwrapped_parameters={model.cls: 2, model.position: 2},
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for m in model.modules():
        if isinstance(m, SelfAttention):
            m.num_heads = pruner.num_heads[m.qkv]
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.head_dim) == ((2, 8) if whole_heads else (4, 4))
    assert (model.cls.shape[2], model.position.shape[2], model.norm.normalized_shape) == (16, 16, (16,))
    assert model(x).shape == (2, 7)
    assert pk.check_exact(original, model, pruner.graph.applied, x)


def test_a_language_model() -> None:
    torch.manual_seed(0)
    model, words = Decoder().eval(), torch.randint(50, (2, 6))
    original = copy.deepcopy(model)
    heads: dict[nn.Module, int] = {}
    fused: dict[nn.Module, int] = {}
    for layer in model.layers:
        attention = layer.self_attn
        heads |= {attention.q_proj: 8, attention.k_proj: 2, attention.v_proj: 2}
        fused[layer.gate_up] = 2
    pruner = tp.pruner.BasePruner(
        model,
        words,
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        pruning_ratio=0.5,
        head_pruning_ratio=0.5,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        out_channel_groups=fused,
        ignored_layers=[model.lm_head],
        root_module_types=[nn.Linear],
        output_transform=lambda out: out["logits"],
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for layer in model.layers:
        attention = layer.self_attn
        attention.num_heads = attention.q_proj.out_features // attention.head_dim
        attention.num_kv_heads = attention.k_proj.out_features // attention.head_dim
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 1, 4)
        assert (layer.gate_up.out_features, layer.down.in_features, layer.norm1.weight.numel()) == (96, 48, 16)
    assert pruner.num_heads == {layer: count // 2 for layer, count in heads.items()}
    assert model(words)["logits"].shape == (2, 6, 50)
    assert pk.check_exact(original, model, pruner.graph.applied, words)


class ScalePruner(tp.BasePruningFunc):
    """Prunes `Scale` as its user would."""

    def prune_out_channels(self, layer: Scale, idxs: list[int]) -> Scale:
        keep = [i for i in range(len(layer.weight)) if i not in set(idxs)]
        layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 0)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Scale) -> int:
        return len(layer.weight)

    get_in_channels = get_out_channels


def test_a_customized_layer() -> None:
    model, words, mine = Decoder(), torch.randint(50, (2, 6)), ScalePruner()
    original = copy.deepcopy(model)
    pruner = tp.pruner.MagnitudePruner(
        model,
        words,
        tp.importance.MagnitudeImportance(),
        customized_pruners={Scale: mine},
        root_module_types=[nn.Linear, Scale],
        ignored_layers=[model.lm_head],
    )
    assert pruner.DG.get_pruner_of_module(model.norm) is mine
    pruner.step()
    assert len(model.norm.weight) == pruner.DG.get_out_channels(model.norm) == 16
    assert pk.check_exact(original, model, pruner.graph.applied, words)
    model = Decoder()
    graph = tp.DependencyGraph()
    graph.register_customized_layer(Scale, mine)
    graph.build_dependency(model, words)
    group = graph.get_pruning_group(model.norm, mine.prune_out_channels, [3, 5])
    assert group[0].dep.layer is model.norm
    assert graph.is_out_channel_pruning_fn(mine.prune_out_channels)
    group.prune()
    assert model.embed.embedding_dim == model.lm_head.in_features == len(model.norm.weight) == 30
    with pytest.raises(pk.ArgumentError, match="before build_dependency"):
        graph.register_customized_layer(Scale, mine)


class FiveMethods:
    """A pruning object with the methods that are asked for and nothing else, not even a ``__dict__``."""

    __slots__ = ()

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        kept = [unit for unit in range(layer.size) if unit not in set(idxs)]
        layer.weight = nn.Parameter(layer.weight.data[kept])
        layer.size = len(kept)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return int(layer.size)  # type: ignore[call-overload]

    get_in_channels = get_out_channels

    def get_channel_groups(self, layer: nn.Module) -> int:
        return 1


class Sized(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.weight = size, nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def sized() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), Sized(16), nn.ReLU(), nn.Linear(16, 4))


def test_a_pruning_object_needs_its_methods_only() -> None:
    model, x, pruner = sized(), torch.randn(2, 8), FiveMethods()
    graph = tp.DependencyGraph().build_dependency(model, x, customized_pruners={Sized: pruner})
    graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [0, 1]).prune()
    group = graph.get_pruning_group(model[1], pruner.prune_out_channels, [0, 1])
    assert [len(idxs) for _, idxs in group] == [2] * len(group)
    assert tp.importance.MagnitudeImportance()(group).shape == (2,)
    group.prune()
    assert (model[0].out_features, model[1].size, model[3].in_features) == (12, 12, 12)
    assert model(x).shape == (2, 4)
    for kind in (tp.pruner.MetaPruner, tp.pruner.GroupNormPruner):
        model = sized()
        options = {"customized_pruners": {Sized: pruner}, "root_module_types": [nn.Linear, Sized], "pruning_ratio": 0.5}
        kind(model, x, importance=tp.importance.GroupMagnitudeImportance(), **options).step()
        assert model[1].size == 8
        assert model(x).shape == (2, 4)


def test_a_group_may_start_at_an_output_on_purpose() -> None:
    model, x = sized(), torch.randn(2, 8)
    weight = model[3].weight.detach().clone()
    graph = tp.DependencyGraph().build_dependency(model, x)
    graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [3]).prune()
    graph.get_pruning_group(model[3], tp.prune_linear_out_channels, [0, 2]).prune()
    assert torch.equal(model[3].weight, weight[[1, 3]][:, [unit for unit in range(16) if unit != 3]])
    assert model(x).shape == (2, 2)
    assert [next(dep.target.name for dep, _ in group).split()[0] for group in graph.get_all_groups()] == ["0"]
    assert graph.pruning_history() == [("0", True, [3]), ("3", True, [0, 2])]
    fresh = sized()
    again = tp.DependencyGraph().build_dependency(fresh, x)
    with pytest.raises(pk.UnitsError, match="out of range"):
        again.get_pruning_group(fresh[3], tp.prune_linear_out_channels, [4])


def test_a_history_is_plain_data(tmp_path: Path) -> None:
    model, x = sized(), torch.randn(2, 8)
    pruner = tp.pruner.MagnitudePruner(model, x, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5)
    pruner.step()
    torch.save(pruner.pruning_history(), tmp_path / "history.pt")
    history = torch.load(tmp_path / "history.pt", weights_only=True)
    assert history == pruner.pruning_history()
    assert {type(entry) for entry in history} == {tuple}
    fresh = sized()
    other = tp.pruner.MagnitudePruner(fresh, x, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5)
    other.load_pruning_history(history)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_parameters_that_no_layer_owns() -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(2, 3, 16, 16)
    graph = tp.DependencyGraph().build_dependency(model, x, unwrapped_parameters=[(model.position, 2)])
    assert {id(parameter): dim for parameter, dim in graph.unwrapped_parameters} == {
        id(model.cls): 2,
        id(model.position): 2,
    }
    group = graph.get_pruning_group(model.cls, tp.prune_parameter_out_channels, [5, 0])
    assert (group[0].dep.layer, group[0].idxs) == (model.cls, [0, 5])
    root = graph.get_pruning_group(model.patches, tp.prune_conv_out_channels, [5, 0])
    importance = tp.importance.MagnitudeImportance()
    assert torch.equal(importance(group), importance(root))
    assert importance(group)[0] != importance(group)[1]
    group.prune()
    assert model.cls.shape == (1, 1, 30)
    assert model.patches.out_channels == model.norm.normalized_shape[0] == 30
    with pytest.raises(pk.ArgumentError, match="doesn't prune parameters"):
        graph.get_pruning_group(model.cls, tp.prune_linear_out_channels, [0])


def test_ignored_parameters() -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(2, 3, 16, 16)
    pruner = tp.pruner.MetaPruner(
        model, x, tp.importance.MagnitudeImportance(), ignored_layers=[model.head, model.position]
    )
    pruner.step()
    assert model.position.shape[2] == model.patches.out_channels == 32
    assert model.blocks[0].fc1.out_features == 64
    graph = tp.DependencyGraph().build_dependency(
        model, x, ignored_layers=[model.blocks[0].fc1], ignored_params=[model.cls]
    )
    roots = [group[0].dep.layer for group in graph.get_all_groups()]
    assert model.blocks[1].fc1 in roots
    assert not {model.blocks[0].fc1, model.patches} & set(roots)
    with pytest.raises(pk.UnitsError, match="ignored"):
        graph.get_pruning_group(model.blocks[0].fc1, tp.prune_linear_out_channels, [0])


# -- segmentation


@pytest.mark.slow
def test_a_segmentation_model() -> None:
    torch.manual_seed(0)
    model, x = Segmenter().eval(), torch.randn(1, 3, 16, 16)
    original = copy.deepcopy(model)
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=x,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[model.classifier],
        output_transform=lambda out: out["out"],
    )
    pruner.step()
    assert model(x)["out"].shape == (1, 5, 16, 16)
    assert (model.depthwise[0].groups, model.up.in_channels, model.up.out_channels) == (16, 28, 8)
    assert model.fuse[0].in_channels == 8 + 8
    assert pk.check_exact(original, model, pruner.graph.applied, x)

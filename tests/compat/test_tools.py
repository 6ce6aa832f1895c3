"""Counting, measuring, printing, drawing, and plain-data states."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
import prunekit_plugins.compat.torch_pruning as tp
from tests.compat.models import VisionTransformer
from tests.models import Residual

X = torch.randn(2, 3, 8, 8)


def test_operations_are_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    macs, parameters = tp.utils.count_ops_and_params(model, X)
    assert (macs, parameters) == (2 * 8 * 64 * 27 + 2 * 5120, 8 * 27 + 8 + 16 + 5130)
    total, count, by_layer, parameters_by_layer = tp.utils.count_ops_and_params(model, X, layer_wise=True)
    assert (total, count) == (macs, parameters) == (by_layer[model], parameters_by_layer[model])
    assert by_layer[model[0]] == 2 * 8 * 64 * 27
    assert by_layer[model[1]] == 0
    assert parameters_by_layer[model[4]] == 5130
    assert tp.utils.count_params(model) == count
    assert all(not module._forward_hooks for module in model.modules())
    assert model[1].num_batches_tracked == 0


def test_attention_counts() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    macs, _ = tp.utils.count_ops_and_params(model, (torch.randn(3, 5, 8),) * 3)
    assert macs == 3 * (5 * 8 * 8 * 4 + 2 * 2 * 5 * 5 * 4)


def test_gradients_of_matrices() -> None:
    gradients = tp.utils.compute_mat_grad.ComputeMatGrad()
    for layer, x in (
        (nn.Linear(3, 4), torch.randn(5, 3)),
        (nn.Linear(3, 4, bias=False), torch.randn(5, 2, 3)),
        (nn.Conv2d(3, 4, 3, 2, 1, bias=False), torch.randn(5, 3, 8, 8)),
        (nn.Conv2d(3, 4, 2, dilation=2), torch.randn(5, 3, 8, 8)),
    ):
        output = layer(x)
        outer = torch.randn_like(output)
        found = gradients(x, outer, layer)
        for sample in range(5):
            own = torch.autograd.grad(
                layer(x[sample : sample + 1]), list(layer.parameters()), outer[sample : sample + 1]
            )
            wanted = own[0].flatten(1)
            if layer.bias is not None:
                wanted = torch.cat([wanted, own[1][:, None]], 1)
            assert torch.allclose(found[sample], wanted, atol=1e-5)
    with pytest.raises(pk.ArgumentError):
        gradients(X, X, nn.ReLU())


def test_flattening() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [len(t) for t in tp.utils.flatten_as_list([a, (b, {"c": c})])] == [1, 2, 3]
    with pytest.raises(pk.ArgumentError, match="int"):
        tp.utils.flatten_as_list([1])


def test_printing_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    tp.utils.print_tool.before_pruning(model)
    tp.pruner.MagnitudePruner(model, torch.randn(2, 4), tp.importance.MagnitudeImportance()).step()
    text = tp.utils.print_tool.after_pruning(model, do_print=False)
    assert "(0): Linear(in_features=4, out_features=8, bias=True) => (0): Linear(in_features=4, out_features=4" in text
    assert "(1): ReLU()\n" in text
    assert capsys.readouterr().out == ""
    tp.utils.print_tool.after_pruning(model)
    assert capsys.readouterr().out == text
    tp.utils.print_tool._before_pruning = None
    with pytest.raises(pk.ArgumentError, match="Nothing to compare"):
        tp.utils.print_tool.after_pruning(model)


def test_measuring() -> None:
    model, calls = Residual().train(), []
    model.bn1.eval()
    model.register_forward_pre_hook(lambda m, args: calls.append((m.training, torch.is_grad_enabled())))
    mean, deviation = tp.utils.benchmark.measure_latency(model, X, repeat=3, warmup=2)
    assert mean > 0
    assert deviation >= 0
    assert calls == [(False, False)] * 5
    assert (model.training, model.bn1.training) == (True, False)
    assert tp.utils.benchmark.measure_fps(model, X, 2, 0) > 0
    runs: list[Any] = []
    assert tp.utils.benchmark.measure_throughput(model, X, 2, 1, run_fn=lambda m, x: runs.append(len(x))) > 0
    assert runs == [2, 2, 2]
    with pytest.raises(pk.ArgumentError, match="repeat"):
        tp.utils.benchmark.measure_latency(model, X, repeat=0)
    with pytest.raises(tp.UnavailableError, match="GPU"):
        tp.utils.benchmark.measure_memory(model, X)


def test_drawing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    graph = tp.DependencyGraph().build_dependency(Residual(), X)
    for number, draw in enumerate(
        (tp.utils.draw_groups, tp.utils.draw_dependency_graph, tp.utils.draw_computational_graph)
    ):
        draw(graph, tmp_path / f"{number}.png", title="A title", figsize=(2, 2), dpi=50)
        assert (tmp_path / f"{number}.png").stat().st_size > 500


def test_drawing_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("no matplotlib here")
        return real(name, *args, **kwargs)

    graph = tp.DependencyGraph().build_dependency(Residual(), X)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(tp.UnavailableError, match="Drawing needs matplotlib"):
        tp.utils.draw_groups(graph, tmp_path / "x.png")


def test_what_is_drawn() -> None:
    from prunekit_plugins.compat.torch_pruning.utils import utils

    model = Residual()
    graph = tp.DependencyGraph().build_dependency(model, X)
    layers = [model.conv1, model.bn1, model.conv2, model.bn2, model.conv3, model.bn3, model.fc]
    assert list(graph.module2node) == layers
    pairs = {(layers.index(a), layers.index(b)) for a, b in utils._edges(graph)}
    assert pairs == {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 6), (5, 6)}
    matrix = utils._matrix(layers, [(model.conv1, model.fc)])
    assert matrix.sum() == matrix[0, 6] == 1


# -- states


def pruned_transformer() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer().eval()
    model.blocks[0].attn = Wrapped(32)
    tp.pruner.MagnitudePruner(
        model, torch.randn(2, 3, 16, 16), tp.importance.MagnitudeImportance(), ignored_layers=[model.head]
    ).step()
    return model


class Wrapped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x)[0]


def fresh_transformer() -> nn.Module:
    model = VisionTransformer().eval()
    model.blocks[0].attn = Wrapped(32)
    return model


def test_a_state_is_plain_data_and_makes_the_same_model(tmp_path: Path) -> None:
    model, x = pruned_transformer(), torch.randn(2, 3, 16, 16)
    assert model.blocks[0].attn.inner.qk_head_dim == 4
    torch.save(tp.state_dict(model), tmp_path / "state.pt")
    fresh = fresh_transformer()
    weight = fresh.blocks[0].attn.inner.in_proj_weight
    tp.load_state_dict(fresh, torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x), model(x))
    assert fresh.blocks[1].attn.head_dim == model.blocks[1].attn.head_dim == 4
    assert fresh.blocks[0].attn.inner.in_proj_weight is weight
    tp.load_state_dict(fresh, tp.state_dict(model))
    assert torch.equal(fresh(x), model(x))


def test_attributes_that_a_module_adds_come_back(tmp_path: Path) -> None:
    model = pruned_transformer()
    added = {"note": "second run", "best": 0.93, "table": {"a": [1, (2, None)]}, "flags": [True, False]}
    vars(model.blocks[1]).update(added, best_loss=None, handle=object())
    torch.save(tp.state_dict(model), tmp_path / "state.pt")
    fresh = fresh_transformer()
    tp.load_state_dict(fresh, torch.load(tmp_path / "state.pt", weights_only=True))
    assert {name: vars(fresh.blocks[1])[name] for name in added} == added
    assert vars(fresh.blocks[1])["best_loss"] is None
    assert not hasattr(fresh.blocks[1], "handle")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("prunekit"), "Not a state"),
        (lambda s: s["attributions"][""].update(evil=torch.zeros(3)), "no such attribute: evil"),
        (lambda s: s["attributions"][""].update(_hidden=3), "no such attribute: _hidden"),
        (lambda s: s["attributions"][""].update(blocks=3), "no such attribute: blocks"),
        (lambda s: s["attributions"][""].update(parameters=3), "no such attribute: parameters"),
        (lambda s: s["attributions"]["patches"].update(forward=3), "no such attribute: forward"),
        (lambda s: s["attributions"]["patches"].update(out_channels="16"), "no such attribute: out_channels"),
        (lambda s: s["full_state_dict"].pop("cls"), "another model"),
        (lambda s: s["full_state_dict"].update(cls=torch.zeros(3)), "another model"),
        (lambda s: s["replacements"].update({"blocks.1.attn": "multihead_attention"}), "fits"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, words: str) -> None:
    state, fresh = tp.state_dict(pruned_transformer()), fresh_transformer()
    state["attributions"].setdefault("", {})
    change(state)
    before, kinds = {k: v.clone() for k, v in fresh.state_dict().items()}, [type(m) for m in fresh.modules()]
    with pytest.raises(pk.CheckpointError) as caught:
        tp.load_state_dict(fresh, state)
    assert words in str(caught.value)
    assert [type(m) for m in fresh.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_lstms_lose_hidden_units() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.cell = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
            self.out = nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.out(self.cell(self.embed(x))[0])
            return result

    model, x = Tagger(), torch.randn(2, 4, 5)
    tp.pruner.MagnitudePruner(model, x, tp.importance.MagnitudeImportance(), pruning_ratio=0.5).step()
    assert (model.embed.out_features, model.cell.hidden_size, model.out.in_features) == (4, 6, 12)
    assert model(x).shape == (2, 4, 3)
    assert tp.function.prune_lstm_out_channels(nn.LSTM(4, 8), [0]).hidden_size == 7
    assert tp.function.prune_lstm_in_channels(nn.LSTM(4, 8), [0, 3]).input_size == 2

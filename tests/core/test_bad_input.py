"""What bad input gets: a clear error before anything changes, and an untouched model."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.layers import (
    prune_conv_in_channels,
    prune_conv_out_channels,
    prune_linear_in_channels,
    prune_linear_out_channels,
)
from tests.models import Attention, Chain, Residual

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def fingerprint(model: nn.Module) -> dict[str, object]:
    state: dict[str, object] = {name: value.clone() for name, value in model.state_dict().items()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | tuple):
                state[f"{path}.{key}"] = value
        state[f"{path} hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks), type(module))
    state["gradients"] = [p.grad is None for p in model.parameters()]
    return state


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = fingerprint(model)
    yield
    after = fingerprint(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        other = after[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.parametrize("fast", [True, False])
def test_analysis_leaves_no_trace_on_the_model_or_on_torch(fast: bool) -> None:
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        model = Residual().train()
        with untouched(model):
            random = torch.get_rng_state()
            pk.DependencyGraph().build_dependency(model, X)
            pk.BasePruner(model, X, "magnitude").plan()
            assert torch.equal(random, torch.get_rng_state())
        assert torch.backends.mha.get_fastpath_enabled() is fast
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_example_inputs_that_do_not_fit() -> None:
    model = Residual()
    with untouched(model), pytest.raises(pk.RecordingError, match=r"raised on the example inputs") as caught:
        pk.prune(model, torch.randn(1, 4, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "expected input[1, 4, 8, 8] to have 3 channels" in str(caught.value)
    assert "eval mode, inputs of shape [(1, 4, 8, 8)]" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16])
def test_example_inputs_of_another_dtype(dtype: torch.dtype) -> None:
    model = Chain(4, 8, 3)
    x = torch.ones(2, 4, dtype=dtype)
    with pytest.raises(RuntimeError, match="dtype"):  # a recording on tensors without data has to refuse it as well
        model(x)
    with untouched(model), pytest.raises(pk.RecordingError, match=r"raised on the example inputs[\s\S]* dtype"):
        pk.prune(model, x, verify="never")


def test_weights_that_are_not_finite_are_no_fault_of_the_criterion() -> None:
    model = Chain(4, 8, 3)
    model.layers[0].weight.data[1, 2] = float("nan")
    with pytest.raises(pk.ArgumentError, match=r"weights that are not finite[\s\S]*layers\.0\.weight"):
        pk.prune(model, torch.randn(1, 4))
    assert model.layers[0].weight.shape == (8, 4)


def test_copies_that_are_none_are_told_by_number() -> None:
    model, x = Chain(4, 8, 3), torch.randn(1, 4)
    small = pk.prune(Chain(4, 8, 3), x).model
    for copies, where, why in (
        (
            [copy.deepcopy(model), small],
            "copies[1], layers.0.weight",
            "it has shape (4, 4), the plan was made for (8, 4)",
        ),
        ([nn.Linear(2, 2)], "copies[0], layers.0.weight", "the model has no such parameter"),
    ):
        with untouched(model), pytest.raises(pk.PlanError, match="A copy isn't like the model") as caught:
            pk.BasePruner(model, x).step(copies=copies)
        assert (caught.value.where, caught.value.why) == (where, why)
    with untouched(model), pytest.raises(pk.ArgumentError, match="copies is a list of models"):
        pk.BasePruner(model, x).step(copies=["teacher"])  # type: ignore[list-item]
    with untouched(model), pytest.raises(pk.PlanError, match=r"shares parameters[\s\S]*deepcopy"):
        pk.BasePruner(model, x).step(copies=[model])
    with pytest.raises(pk.ArgumentError, match="optimizer is an optimizer"):
        pk.BasePruner(model, x).step(optimizer=3)  # type: ignore[arg-type]


def test_a_target_that_is_met_is_no_error() -> None:
    model, x = Chain(4, 8, 3), torch.randn(1, 4)
    for target in ({"params": 1e9}, {"macs": 1.0}):
        result = pk.prune(model, x, target=target)
        assert not result.plan.cuts
        assert "the model meets the target as it is: nothing was removed" in result.report.notes
    for limit in ({"round_to": 1000}, {"max_pruning_ratio": 0.0}):
        name, value = next(iter(limit.items()))
        with pytest.raises(pk.NothingToPruneError, match=rf"all 8 units stay at this ratio \({name}={value:g}\)"):
            pk.prune(model, x, **limit)  # type: ignore[arg-type]


def test_what_holds_an_analysis_is_not_copied() -> None:
    model, x = Chain(4, 8, 3), torch.randn(1, 4)
    result, pruner = pk.prune(copy.deepcopy(model), x), pk.BasePruner(model, x)
    for held in (result, result.graph, pruner):
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(pk.ArgumentError, match="can't be copied or pickled"):
                duplicate(held)


def test_paths_plans_and_layers_of_another_kind(tmp_path: Path) -> None:
    model, x = Chain(4, 8, 3), torch.randn(1, 4)
    with pytest.raises(pk.ArgumentError, match="A path is a text"):
        pk.save(model, 5)  # type: ignore[arg-type]
    with pytest.raises(pk.ArgumentError, match="plan is a Plan"):
        pk.save(model, tmp_path / "x.safetensors", plan="plan.json")  # type: ignore[arg-type]
    graph = pk.DependencyGraph().build_dependency(model, x)
    with pytest.raises(pk.ArgumentError, match=r"as a module here[\s\S]*get_submodule"):
        graph.get_pruning_group("layers.0", prune_linear_out_channels, [0])  # type: ignore[arg-type]
    with pytest.raises(pk.UnitsError, match="must be integers"):
        graph.get_pruning_group(model.layers[0], prune_linear_out_channels, None)  # type: ignore[arg-type]
    with pytest.raises(pk.ArgumentError, match=r"ascending cumulative ratios[\s\S]*got None"):
        pk.BasePruner(model, x, iterative_pruning_ratio_scheduler=lambda ratio, steps: None)  # type: ignore[arg-type]
    with pytest.raises(pk.ArgumentError, match="No compensator is registered as 'least'"):
        pk.prune(model, x, compensation="least")
    with pytest.raises(pk.ArgumentError, match="got Parameter"):
        pk.prune(model, x, ignored_layers=[model.layers[0].weight])  # type: ignore[list-item]
    assert not any(tmp_path.iterdir())


def test_what_takes_calibration_data_is_refused_without_them() -> None:
    model, x = Chain(4, 8, 3), torch.randn(2, 4)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    asked: dict[str, Any]
    for asked in (
        {"compensation": "bias"},
        {"compensation": ["least_squares", "bias"]},
        {"compensation": "least_squares"},
    ):
        with pytest.raises(pk.ArgumentError, match=r"compensation needs calibration data.[\s\S]*calibration=batches"):
            pk.prune(model, x, **asked)
    with pytest.raises(pk.ArgumentError, match=r"stages needs calibration data.[\s\S]*leave stages out"):
        pk.prune(model, x, stages=2)
    with pytest.raises(pk.ArgumentError, match="stages needs calibration data"):
        pk.prune(model, x, branches=["a"], stages=2)
    for name, value in {"compensation": "bias", "stages": 2, "reestimate_batchnorm": True}.items():
        with pytest.raises(TypeError, match=rf"BasePruner has no argument called '{name}'[\s\S]*calibration=batches"):
            pk.BasePruner(model, x, **{name: value})
        with pytest.raises(TypeError, match=f"no argument called '{name}'"):
            pk.default_registry().pruner(model, x, **{name: value})
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert pk.prune(model, x, compensation=None, reestimate_batchnorm=False).report.notes == ()


def test_names_that_are_listed_are_names() -> None:
    with pytest.raises(pk.ArgumentError, match=r"known: layers, layers\.0, "):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), ignored_layers=["zz"])


def test_the_models_own_exception_is_the_cause() -> None:
    class Angry(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("mine")

    with pytest.raises(pk.RecordingError) as caught:
        pk.prune(Angry(), X)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), "half", True])
def test_ratio_out_of_range(ratio: object) -> None:
    model = Residual()
    with untouched(model), pytest.raises(pk.ArgumentError, match=r"ratio must lie in \[0, 1\)"):
        pk.prune(model, X, ratio)  # type: ignore[arg-type]
    with pytest.raises(pk.ArgumentError, match="pruning_ratio_dict"):
        pk.prune(model, X, pruning_ratio_dict={model.conv1: ratio})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"importance": "magnitud"}, "did you mean 'magnitude'"),
        ({"importance": 3}, "must be a callable"),
        ({"round_to": 0}, "round_to must be a positive integer"),
        ({"max_pruning_ratio": 1.2}, r"max_pruning_ratio must lie in \[0, 1\]"),
        ({"ratio": 0.5, "target": {"macs": 0.5}}, "not both"),
        ({"target": {}}, "target is empty"),
        ({"target": {"mac": 0.5}}, "did you mean 'macs'"),
        ({"target": {"macs": -1}}, "positive number"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_traced(arguments: dict[str, object], message: str) -> None:
    class Untraceable(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("traced")

    model = Untraceable()
    with untouched(model), pytest.raises(pk.ArgumentError, match=message):
        pk.prune(model, X, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_iterative_steps(steps: object) -> None:
    with pytest.raises(pk.ArgumentError, match="iterative_steps"):
        pk.BasePruner(Residual(), X, iterative_steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [lambda ratio, steps: [0.0], lambda ratio, steps: [0.0, 0.5, 0.2], "nope", 4])
def test_a_wrong_schedule(schedule: object) -> None:
    with pytest.raises(pk.ArgumentError, match=r"[Ss]chedule"):
        pk.BasePruner(Residual(), X, iterative_steps=2, iterative_pruning_ratio_scheduler=schedule)  # type: ignore[arg-type]


def test_a_layer_that_is_not_in_the_model() -> None:
    model = Residual()
    graph = pk.DependencyGraph().build_dependency(model, X)
    with pytest.raises(pk.ArgumentError, match="not part of the model"):
        graph.get_pruning_group(nn.Conv2d(3, 8, 3), prune_conv_out_channels, [0])
    for ignored, message in ((nn.Conv2d(3, 3, 1), "not part"), ("conv9", "did you mean 'conv"), (nn.LSTM, "no LSTM")):
        with pytest.raises(pk.ArgumentError, match=message):
            pk.prune(model, X, ignored_layers=[ignored])
    with pytest.raises(pk.ArgumentError, match="doesn't prune this layer"):
        graph.get_pruning_group(model.conv1, prune_linear_out_channels, [0])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([8], "8 is not in 0..7"),
        ([-1], "-1 is not in 0..7"),
        ([1, 1], "1 occurs more than once"),
        ([0.5], "must be integers"),
        ([True], "must be integers"),
        (torch.tensor([0.5]), "must be integers"),
        (torch.tensor([True, False]), "must be integers"),
        ([], "No units were chosen"),
        (list(range(8)), "All units of a group"),
    ],
)
def test_wrong_indices(indices: object, message: str) -> None:
    model = Residual()
    graph = pk.DependencyGraph().build_dependency(model, X)
    with untouched(model), pytest.raises(pk.UnitsError, match=message):
        graph.get_pruning_group(model.conv1, prune_conv_out_channels, indices).prune()  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [torch.tensor([6, 2]), (6, 2), torch.tensor([6, 2], dtype=torch.int16)])
def test_valid_indices_in_any_form_and_order(indices: object) -> None:
    model = Residual()
    expected = model.conv1.weight[[0, 1, 3, 4, 5, 7]].clone()
    graph = pk.DependencyGraph().build_dependency(model, X)
    graph.get_pruning_group(model.conv1, prune_conv_out_channels, indices).prune()  # type: ignore[arg-type]
    assert torch.equal(model.conv1.weight, expected)
    assert model.fc.in_features == 6


def test_units_that_are_pinned_or_not_whole() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 5)
    )
    graph = pk.DependencyGraph().build_dependency(model, X)
    with untouched(model):
        with pytest.raises(pk.UnitsError, match="can only leave together with others"):
            graph.get_pruning_group(model[0], prune_conv_out_channels, [1])
        with pytest.raises(pk.UnitsError, match=r"pinned: an output of the model"):
            graph.get_pruning_group(model[4], prune_linear_out_channels, [1])
        with pytest.raises(pk.UnitsError, match="pinned: an input of the model"):
            graph.get_pruning_group(model[0], prune_conv_in_channels, [1])
        with pytest.raises(pk.UnitsError, match="not whole units"):
            graph.get_pruning_group(model[4], prune_linear_in_channels, [0, 1])
    graph.get_pruning_group(model[0], prune_conv_out_channels, [1, 5]).prune()
    assert (model[1].in_channels, model[1].groups, model[1].weight.shape[1]) == (6, 2, 3)
    graph.get_pruning_group(model[4], prune_linear_in_channels, range(16, 32)).prune()
    assert (model[2].out_channels, model[4].in_features) == (3, 48)


def test_units_that_the_program_cannot_lose_alone() -> None:
    model = nn.Sequential(nn.Linear(10, 16), Attention(16, 4), nn.Linear(16, 3))
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(2, 6, 10))
    group = graph.get_pruning_group(model[0], prune_linear_out_channels, [3])
    with untouched(model), pytest.raises(pk.RehearsalError, match="can't express this cut"):
        group.prune()


def test_script_modules_lazy_modules_and_things_that_are_no_model() -> None:
    with pytest.warns(Warning, match="torch.jit.trace"):
        scripted = torch.jit.trace(nn.Linear(3, 3), torch.randn(1, 3))
    with pytest.raises(pk.UnsupportedModelError, match="ScriptModule"):
        pk.prune(nn.Sequential(scripted), torch.randn(1, 3))
    with pytest.raises(pk.UnsupportedModelError, match="uninitialised lazy parameters"):
        pk.prune(nn.Sequential(nn.LazyLinear(3)), torch.randn(1, 3))
    with pytest.raises(pk.UnsupportedModelError, match="got function"):
        pk.prune(lambda x: x, torch.randn(1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Identity(), "no parameters that an operation used"),
        (lambda: nn.Linear(3, 3), "an output of the model"),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh()), "an output of the model"),
    ],
)
def test_a_model_with_nothing_to_prune_is_no_success(model: Callable[[], nn.Module], message: str) -> None:
    made = model()
    with untouched(made), pytest.raises(pk.NothingToPruneError, match=message):
        pk.prune(made, torch.randn(2, 3))


def test_a_plan_for_another_model() -> None:
    plan = pk.prune(Residual(), X).plan
    for other in (Chain(4, 8, 3), nn.Sequential(nn.Conv2d(3, 8, 3))):
        with untouched(other), pytest.raises(pk.PlanError, match="made for another model"):
            plan.apply(other)
    pruned = Residual()
    plan.apply(pruned)
    with untouched(pruned), pytest.raises(pk.PlanError, match=r"has shape \(4, 3, 3, 3\)"):
        plan.apply(pruned)
    with pytest.raises(pk.PlanError):
        pk.check_exact(Chain(4, 8, 3), Chain(4, 8, 3), plan, torch.randn(1, 4))


def test_a_model_changed_behind_the_graphs_back() -> None:
    model = Residual()
    pruner = pk.BasePruner(model, X, "magnitude")
    pk.prune(model, X)
    with untouched(model), pytest.raises(pk.PlanError, match="build the graph anew"):
        pruner.step()


def save_pruned(path: Path) -> tuple[Residual, pk.Plan]:
    torch.manual_seed(0)
    model = Residual()
    plan = pk.prune(model, X).plan
    pk.save(model, path, plan=plan)
    return model, plan


def test_save_and_load_give_identical_bits(tmp_path: Path) -> None:
    model, plan = save_pruned(tmp_path / "small.safetensors")
    loaded = pk.load(Residual(), tmp_path / "small.safetensors")
    assert torch.equal(model.eval()(X), loaded.eval()(X))
    assert pk.read_plan(tmp_path / "small.safetensors") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_corrupt_and_foreign_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_pruned(path)
    good = path.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, foreign)
    cases: dict[str, bytes] = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "garbage": b"not safetensors at all" * 10,
        "foreign": foreign.read_bytes(),
    }
    for name, content in cases.items():
        file = tmp_path / f"{name}.bin"
        file.write_bytes(content)
        model = Residual()
        with untouched(model), pytest.raises(pk.CheckpointError):
            pk.load(model, file)
    with pytest.raises(pk.CheckpointError, match="no such file"):
        pk.load(Residual(), tmp_path / "missing")


def test_load_into_a_model_of_other_shape(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_pruned(path)
    wider = Residual()
    wider.conv2 = nn.Conv2d(8, 14, 3, padding=1)
    wider.bn2 = nn.BatchNorm2d(14)
    wider.conv3 = nn.Conv2d(14, 8, 3, padding=1)
    longer = Residual()
    longer.extra = nn.Linear(2, 2)
    for other in (wider, longer, Chain(4, 8, 3)):
        with untouched(other), pytest.raises(pk.CheckpointError, match="for another model"):
            pk.load(other, path)


def test_a_plan_that_does_not_lead_to_the_model_is_not_saved(tmp_path: Path) -> None:
    model = Residual()
    plan = pk.prune(copy.deepcopy(model), X).plan
    with pytest.raises(pk.CheckpointError, match="doesn't lead to this model"):
        pk.save(model, tmp_path / "x", plan=plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=99),
        lambda d: d["groups"]["conv2"].update(kept=[0, 99]),
        lambda d: d["groups"]["conv2"].update(kept=[]),
        lambda d: d["groups"]["conv2"].update(kept=[3, 1]),
        lambda d: d["groups"]["conv2"].update(size=10**12),
        lambda d: d["edits"].append(["conv1", "training", 1, 0]),
        lambda d: d["edits"].append(["conv1", "__class__", 1, 2]),
        lambda d: d["edits"].append(["conv1", "out_channels", 999, 2]),
        lambda d: d["edits"].append(["conv1", "padding_mode", "zeros", "x"]),
        lambda d: d["edits"].append(["", "new_attribute", 1, 2]),
        lambda d: d.update(tables=[["conv1", "kernel_size", {"values": [3, 3]}, {"values": ["x"]}]]),
        lambda d: d.update(tables=[["conv1", "_parameters", {"keys": ["weight"], "values": [1]}, {"values": []}]]),
        lambda d: d.update(tables=[["conv1", "new", {"values": [1]}, {"values": [1, 2]}]]),
        lambda d: d.update(tables=[["conv1", "new", {"values": [{}]}, {"values": []}]]),
        lambda d: d.update(tables=[["conv1", "new", {"keys": [1, 1], "values": [1, 2]}, {"keys": [1], "values": [1]}]]),
        lambda d: d.update(tables=[["conv1", "new", {"values": [1]}, {"values": [1.5]}]]),
        lambda d: d.update(tables=[["conv1", "new", {"values": 3}, {"values": []}]]),
        lambda d: d.update(tables=[["nowhere", "new", {"values": [1]}, {"values": []}]]),
        lambda d: d["swaps"].append(["conv1", "multihead_attention"]),
        lambda d: d["swaps"].append(["conv1", "os.system"]),
        lambda d: d["rescales"].append(["conv1.weight", [[0, 99]], 2.0]),
        lambda d: d["rescales"].append(["conv1.weight", [[0, 1]], float("nan")]),
        lambda d: d["parameters"].update({"../../etc/passwd": {"shape": [1], "dims": [1]}}),
        lambda d: d.pop("edits"),
    ],
)
def test_a_hostile_plan_is_refused(change: Callable[[dict[str, object]], object]) -> None:
    model = Residual()
    data = json.loads(pk.BasePruner(model, X, "magnitude").plan().to_json())
    change(data)
    with untouched(model), pytest.raises(pk.PrunekitError):
        pk.Plan.from_json(json.dumps(data)).apply(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', "[" * 100_000])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(pk.PlanError):
        pk.Plan.from_json(text)


def test_criteria_that_misbehave() -> None:
    model = Residual()
    for scores, message in (
        (lambda g: torch.ones(3), "one score per unit"),
        (lambda g: [1.0], "one score per unit"),
        (lambda g: torch.full((g.size(),), float("nan")), "not finite"),
    ):
        with untouched(model), pytest.raises(pk.PluginError, match=message):
            pk.prune(model, X, importance=scores)  # type: ignore[arg-type]
    with untouched(model), pytest.raises(pk.NothingToPruneError, match="nothing to say"):
        pk.prune(model, X, importance=lambda g: None)


def test_control_flow_that_is_not_the_same_twice_is_refused() -> None:
    class Fickle(Chain):
        calls: ClassVar[list[int]] = [0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls[0] += 1
            return super().forward(x) if self.calls[0] <= 1 else super().forward(x.relu())

    model = Fickle(4, 8, 3)
    with pytest.raises(pk.RehearsalError, match="doesn't run the same way twice"):
        pk.prune(model, torch.randn(1, 4))
    assert model.layers[0].out_features == 8

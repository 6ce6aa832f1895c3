"""Pruning in a loop of one's own: cuts on time, sparse training before them, and the same result after a kill."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.integrations import PruningEvent, TrainingPruner
from prunekit_plugins.pruners import GroupNormPruner, GrowingRegPruner
from prunekit_plugins.regularizers import GroupLassoRegularizer, GrowingRegularizer
from tests.core.test_depth import Deep, X, deep
from tests.integrations.plain_run import AT, STEPS, Run
from tests.models import Chain

ROOT = Path(__file__).parents[2]


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_ends_where_the_whole_run_ends(tmp_path: Path) -> None:
    whole = Run()
    whole.go()
    killed = subprocess.run(
        [sys.executable, "-m", "tests.integrations.plain_run", str(tmp_path), "9"], cwd=ROOT, check=False
    )
    assert killed.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.pt", "8.pt"]
    resumed = Run()
    resumed.resume(tmp_path / "8.pt")
    assert (resumed.done, resumed.pruner.current_step) == (8, 2)
    resumed.go()
    assert resumed.losses == whole.losses[8:]
    for name, part in whole.parts().items():
        assert same(part.state_dict(), resumed.parts()[name].state_dict()), name
    assert resumed.training.state_dict() == whole.training.state_dict()
    other = Run()
    other.resume(tmp_path / "4.pt")
    other.go()
    assert same(whole.model.state_dict(), other.model.state_dict())


def test_what_happens_when(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    whole = copy.deepcopy(run.model)
    with caplog.at_level("INFO", logger="prunekit"):
        run.go()
    events = run.training.events
    assert [(event.after, event.step, event.steps) for event in events] == [(3, 1, 3), (6, 2, 3), (10, 3, 3)]
    assert [record.getMessage() for record in caplog.records] == [str(event) for event in events]
    count = [sum(p.numel() for p in model.parameters()) for model in (whole, run.model)]
    assert [events[0].costs["params"][0], events[-1].costs["params"][1]] == count
    for earlier, later in itertools.pairwise(events):
        assert {name: left for name, (_, left) in earlier.costs.items()} == {
            name: before for name, (before, _) in later.costs.items()
        }
        assert {n: left for n, (_, left) in earlier.groups.items()} == {n: b for n, (b, _) in later.groups.items()}
    assert events[-1].groups["stem.0#stream"][1] == run.model.stem[0].out_channels == 4
    assert events[-1].metrics()["prunekit/macs"] == events[-1].costs["macs"][1]
    assert "pruned after 10 (step 3 of 3)" in str(events[-1])
    assert run.training.finished
    parameters = dict(run.model.named_parameters())
    assert all(run.optimizer.state[p]["exp_avg"].shape == p.shape for p in parameters.values())
    assert all(float(run.optimizer.state[p]["step"]) == STEPS for p in parameters.values())
    assert {n.removeprefix("module."): p.shape for n, p in run.average.named_parameters()} == {
        n: p.shape for n, p in parameters.items()
    }


def test_the_state_is_plain_data_and_its_plan_applies_anywhere() -> None:
    run = Run()
    run.go(7)
    state = json.loads(json.dumps(run.training.state_dict()))
    assert state == run.training.state_dict()
    other = pk.Plan.from_json(state["plan"]).apply(Run().model)
    other.load_state_dict(run.model.state_dict())
    images = run.digits.images[:3]
    assert torch.equal(other.eval()(images), run.model.eval()(images))


def test_a_cut_that_was_due_is_made_late() -> None:
    run = Run()
    assert run.training.after(2) == []
    assert [event.step for event in run.training.after(7)] == [1, 2]
    assert [(event.after, event.step) for event in run.training.after(100)] == [(100, 3)]
    assert run.training.after(101) == []


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_regularizer_is_at_work_until_the_last_cut() -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 6, 3), torch.randn(6, 5)
    pruner = GroupNormPruner(model, x, reg=0.1, iterative_steps=2)
    training = TrainingPruner(pruner, [1, 2])
    for step in range(1, 4):
        model.zero_grad()
        model(x).sum().backward()
        twin = copy.deepcopy(model)
        for name, grad in gradients(model).items():
            twin.get_parameter(name).grad = grad
        before = gradients(model)
        training.regularize()
        found = gradients(model)
        if step < 3:
            gamma = GroupNormPruner(twin, x, reg=0.1)  # the formula has tests of its own
            gamma.regularize(twin)
            assert any(not torch.equal(before[name], found[name]) for name in found)
            assert same(found, gradients(twin))
        else:
            assert same(before, found)
        training.after(step)


def test_a_regularizer_of_ones_own() -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    pruner = pk.BasePruner(model, x)
    lasso = GroupLassoRegularizer(pruner.graph.get_all_groups, 0.5)
    training = TrainingPruner(pruner, [1], regularizer=lasso)
    model(x).sum().backward()
    before = gradients(model)
    training.regularize()
    weight = torch.cat([model.layers[0].weight, model.layers[1].weight.T], 1)
    expected = 0.5 * model.layers[0].weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradients(model)["layers.0.weight"] - before["layers.0.weight"], expected)
    assert TrainingPruner(pk.BasePruner(Chain(5, 8, 3), x), [1]).regularizer is None


def test_coefficients_of_growing_regularization_survive() -> None:
    torch.manual_seed(0)
    model, x = Chain(5, 8, 6, 3), torch.randn(6, 5)
    first = GrowingRegPruner(model, x, delta_reg=0.1)
    first.update_reg()
    state = json.loads(json.dumps(first.regularizer.state_dict()))
    second = GrowingRegPruner(model, x, delta_reg=0.1)
    second.regularizer.load_state_dict(state)
    assert same(first.regularizer.group_reg, second.regularizer.group_reg)
    assert len(set(state["layers.0"])) > 1
    with pytest.raises(pk.ArgumentError, match="for other groups"):
        second.regularizer.load_state_dict({"layers.0": [0.0]})


def test_the_optimizer_and_the_copies_may_be_looked_up_late() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    held: list[Any] = []
    training = TrainingPruner(pk.BasePruner(model, x), [1], optimizer=lambda: held[0], copies=lambda: [held[1]])
    held += [torch.optim.Adam(model.parameters()), copy.deepcopy(model)]
    model(x).sum().backward()
    held[0].step()
    training.after(1)
    assert held[0].state[model.layers[0].weight]["exp_avg"].shape == held[1].layers[0].weight.shape == (4, 5)


def test_wrong_arguments() -> None:
    model, x = Chain(5, 8, 3), torch.randn(6, 5)
    pruner = pk.BasePruner(model, x, iterative_steps=2)
    for at in ([], [2, 1], [0, 1], [1, True], [1.5, 2]):
        with pytest.raises(pk.ArgumentError, match="must be ascending positive integers"):
            TrainingPruner(pruner, at)  # type: ignore[arg-type]
    with pytest.raises(pk.ArgumentError, match="as many times to prune at"):
        TrainingPruner(pruner, [1])
    with pytest.raises(pk.ArgumentError, match="grow_every needs a growing regularization"):
        TrainingPruner(pruner, [1, 2], grow_every=3)
    growing = GrowingRegPruner(model, x)
    assert isinstance(TrainingPruner(growing, [1], grow_every=3).regularizer, GrowingRegularizer)
    with pytest.raises(pk.ArgumentError, match="grow_every must be a positive integer"):
        TrainingPruner(growing, [1], grow_every=0)
    pruner.step()
    with pytest.raises(pk.ArgumentError, match="made steps already"):
        TrainingPruner(pruner, [1, 2])


def fresh(at: tuple[int, ...] = AT) -> tuple[nn.Module, TrainingPruner]:
    model = Chain(5, 8, 6, 3)
    return model, TrainingPruner(pk.BasePruner(model, torch.randn(2, 5), iterative_steps=len(at)), at)


def test_states_that_are_refused_leave_the_model_as_it_was() -> None:
    _, training = fresh()
    training.after(6)
    state = training.state_dict()
    wrong = {
        "The state of the pruning is malformed.": [
            {},
            {**state, "format": 2},
            {**state, "plan": "{}"},
            {**state, "step": None},
            {key: value for key, value in state.items() if key != "coefficients"},
        ],
        "The checkpoint was made with other cuts.": [{**state, "at": [1, 2, 10]}],
        "The checkpoint is for another model.": [{**state, "plan": state["plan"].replace("layers.0", "layers.7")}],
    }
    for headline, states in wrong.items():
        for broken in states:
            model, other = fresh()
            with pytest.raises(pk.CheckpointError) as caught:
                other.load_state_dict(broken)
            assert caught.value.headline == headline
            assert [p.shape for p in model.parameters()] == [p.shape for p in Chain(5, 8, 6, 3).parameters()]
    model, other = fresh((3, 6, 11))  # what is still to come may change
    other.load_state_dict(state)
    assert model.get_parameter("layers.0.weight").shape[0] < 8
    with pytest.raises(pk.ArgumentError, match="made steps already"):
        other.load_state_dict(state)


def test_an_event_in_words() -> None:
    event = PruningEvent(10, 1, 2, {"a": (8, 4)}, {"params": (1000.0, 500.0), "macs": (4e6, 1e6)})
    assert str(event) == ("pruned after 10 (step 1 of 2): 1 groups, params 1,000 -> 500, macs 4,000,000 -> 1,000,000")
    assert event.metrics() == {"prunekit/step": 1.0, "prunekit/params": 500.0, "prunekit/macs": 1e6}


def test_branches_go_while_a_model_is_trained_and_after_it_is_resumed() -> None:
    def fresh() -> tuple[Deep, torch.optim.Optimizer, TrainingPruner]:
        model = deep()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        pruner = GroupNormPruner(model, X, branch_ratio=0.5, pruning_ratio=0.25, iterative_steps=2, calibration=[X])
        return model, optimizer, TrainingPruner(pruner, (1, 2), optimizer=optimizer)

    def train(model: Deep, optimizer: torch.optim.Optimizer, training: TrainingPruner, step: int) -> None:
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        training.pruner.regularize(model)  # type: ignore[attr-defined]
        optimizer.step()
        training.after(step)

    model, optimizer, training = fresh()
    for step in (1, 2):
        train(model, optimizer, training, step)
    first, second = training.events
    assert (len(first.branches), len(second.branches)) == (2, 2)
    assert {*first.branches, *second.branches} == {*training.pruner.graph.applied.absent}
    assert ", 2 branches, params " in str(first)
    assert second.costs["params"][1] == sum(p.numel() for p in model.parameters())

    model, optimizer, training = fresh()
    train(model, optimizer, training, 1)
    weights, states, state = model.state_dict(), copy.deepcopy(optimizer.state_dict()), training.state_dict()
    other, its, again = fresh()
    again.load_state_dict(json.loads(json.dumps(state)))
    other.load_state_dict(weights)
    its.load_state_dict(states)
    train(model, optimizer, training, 2)
    train(other, its, again, 2)
    assert again.pruner.graph.applied == training.pruner.graph.applied
    assert len(again.pruner.graph.applied.absent) == 4
    assert torch.equal(other(X), model(X))

"""Depth in the steps of a pruner: schedules, targets, training in between, interactive steps, histories."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import BranchGroup
from tests.core.test_depth import NAMES, Deep, X, deep, lost, scaled, without

TRAINED = {"layers.1.attend": 1e-3, "layers.2.mlp": 1e-3, "layers.3.mlp": 1e-2, "layers.0.attend": 1e-2}


def gone(pruner: pk.BasePruner) -> tuple[str, ...]:
    return pruner.graph.applied.absent


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_ratio_grows_along_the_schedule() -> None:
    model = scaled(TRAINED)
    original = copy.deepcopy(model)
    pruner = pk.BasePruner(
        model, X, branch_ratio=0.5, iterative_steps=4, global_pruning=True, branch_importance="relative_energy",
        calibration=[X],
    )  # fmt: skip
    counts = []
    for _ in range(4):
        assert pruner.step() is None
        counts.append(len(gone(pruner)))
        assert close(model(X), without(original, gone(pruner)))
    assert counts == [1, 2, 3, 4]
    assert set(gone(pruner)) == TRAINED.keys()
    assert not pruner.graph.applied.cuts
    assert pruner.report().absent == gone(pruner)
    assert set(pruner.report().branches) == set(NAMES) - TRAINED.keys()


def test_another_schedule_takes_all_at_once() -> None:
    pruner = pk.BasePruner(deep(), X, branch_ratio=0.5, iterative_steps=3, iterative_pruning_ratio_scheduler="one_shot")
    counts = []
    for _ in range(3):
        pruner.step()
        counts.append(len(gone(pruner)))
    assert counts == [4, 4, 4]


@pytest.mark.parametrize("importance", ["output_change", "relative_energy", "magnitude"])
def test_what_was_trained_in_between_is_scored_as_it_is_then(importance: str) -> None:
    """After the first step another branch is the weakest, and widths were cut: scores follow."""
    model = scaled({"layers.1.mlp": 1e-3})
    pruner = pk.BasePruner(
        model, X, branch_ratio=0.25, pruning_ratio=0.5, iterative_steps=2, global_pruning=True,
        branch_importance=importance, calibration=None if importance == "magnitude" else [X],
    )  # fmt: skip
    pruner.step()
    assert gone(pruner) == ("layers.1.mlp",)
    assert model.layers[0].mlp.up.out_features < 16  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for parameter in model.layers[2].attend.parameters():  # type: ignore[union-attr]
            parameter.mul_(1e-3)
    pruner.step()
    assert gone(pruner) == ("layers.1.mlp", "layers.2.attend")


def test_later_steps_measure_what_the_model_returns_by_then() -> None:
    """The choice of the second step is the one of a search by hand that starts from the weights that were trained."""
    torch.manual_seed(1)
    model = deep()
    pruner = pk.BasePruner(model, X, branch_ratio=0.5, iterative_steps=2, global_pruning=True, calibration=[X])
    pruner.step()
    first = gone(pruner)
    trained = deep()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    own, theirs = dict(model.named_parameters()), dict(trained.named_parameters())
    places = pruner.graph.applied.places(theirs)
    with torch.no_grad():
        for name, place in places.items():
            own[place].copy_(theirs[name])
    pruner.step()
    whole, expected = without(trained, first), list(first)
    for _ in range(2):
        left = [name for name in NAMES if name not in expected]

        def change(name: str) -> float:
            return float((without(trained, [*expected, name]) - whole).square().sum())

        expected.append(min(left, key=change))
    assert set(gone(pruner)) == set(expected)


def test_named_branches_go_in_their_order() -> None:
    wanted = ["layers.3.mlp", "layers.0.attend", "layers.2.mlp", "layers.1.attend"]
    model = deep()
    original = copy.deepcopy(model)
    pruner = pk.BasePruner(model, X, branches=iter(wanted), iterative_steps=3)
    seen = []
    for _ in range(3):
        pruner.step()
        seen.append(set(gone(pruner)))
    assert seen == [set(wanted[:1]), set(wanted[:2]), set(wanted)]
    assert close(model(X), without(original, wanted))


def test_a_named_layer_goes_branch_by_branch() -> None:
    pruner = pk.BasePruner(deep(), X, branches=["layers.2", "layers.0.mlp"], iterative_steps=3)
    steps = []
    for _ in range(3):
        pruner.step()
        steps.append(gone(pruner))
    assert steps == [("layers.2.attend",), ("layers.2.attend", "layers.2.mlp"), ("layers.0.mlp", *steps[1])]


def test_a_target_is_met_part_by_part() -> None:
    model = deep()
    pruner = pk.BasePruner(model, X, target={"params": 0.6}, by="depth", iterative_steps=3, calibration=[X])
    whole = sum(p.numel() for p in model.parameters())
    left = []
    for step in range(3):
        before = gone(pruner)
        pruner.step()
        assert set(before) <= set(gone(pruner))
        left.append(sum(p.numel() for p in model.parameters()) / whole)
        assert left[-1] <= 1 - 0.4 * (step + 1) / 3 + 1e-9
    assert left == sorted(left, reverse=True)
    assert left[-1] > 0.6 - 280 / whole


def test_a_later_step_gives_no_branch_back_that_is_gone() -> None:
    """A target that less would have met takes what is needed beside what is gone."""
    model = deep()
    pruner = pk.BasePruner(model, X, target={"params": 0.8}, by="depth")
    pruner.graph.apply(pruner.graph.plan_without(["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]))
    pruner.step()
    assert gone(pruner) == ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")


def test_widths_to_a_target_count_the_branches_that_are_gone() -> None:
    """What is left for units to save is what branches haven't saved."""
    model = deep()
    whole = sum(p.numel() for p in model.parameters())
    pruner = pk.BasePruner(model, X)
    pruner.graph.apply(pruner.graph.plan_without(["layers.0.mlp", "layers.1.mlp"]))
    plan = pk.plan_to_target(pruner, {"params": 0.6})
    pruner.graph.apply(plan)
    left = sum(p.numel() for p in model.parameters())
    assert 0.6 * whole - 17 <= left <= 0.6 * whole  # a unit of a feed-forward is 17 parameters


def test_units_of_branches_that_go_are_ranked_with_nothing() -> None:
    """One ranking takes a quarter of the units of what is left: none of those that go with branches count."""
    model = deep()
    with torch.no_grad():
        for parameter in model.layers[0].mlp.parameters():  # type: ignore[union-attr]
            parameter.mul_(1e-3)
    pruner = pk.BasePruner(model, X, branches=["layers.0.mlp"], pruning_ratio=0.25, global_pruning=True)
    sizes = {group.name: group.size for group in pruner.graph.groups()}
    inside = "layers.0.mlp.up"
    pruner.step()
    kept = pruner.graph.applied.kept
    assert inside in sizes
    assert inside not in kept
    removed = sum(sizes[name] - len(units) for name, units in kept.items())
    assert removed == int(0.25 * (sum(sizes.values()) - sizes[inside]))


def test_optimizers_and_averages_go_along() -> None:
    model = deep()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = pk.BasePruner(model, X, branch_ratio=0.5, pruning_ratio=0.25, iterative_steps=2)
    for _ in range(2):
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
        momentum = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
        weights = dict(model.named_parameters())
        before = pruner.graph.applied
        pruner.step(optimizer=optimizer, copies=[average])
        step = pruner.graph.applied if before.empty else pruner.graph.applied.since(before)
        assert len(optimizer.state) == len(list(model.parameters())) < len(weights)
        positions = step.all_positions(step.parameters)
        now = dict(model.named_parameters())
        for name, place in step.places(weights).items():
            expected = momentum[name]
            for dim, kept in positions.get(name, {}).items():
                expected = expected.index_select(dim, kept)
            assert torch.equal(optimizer.state[now[place]]["exp_avg"], expected)
        assert [tuple(p.shape) for p in average.module.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert len(gone(pruner)) == 4
    assert average.module(X).shape == model(X).shape


def test_an_interactive_step_shows_branches_first() -> None:
    model = deep()
    original = copy.deepcopy(model)
    pruner = pk.BasePruner(model, X, branch_ratio=0.5, pruning_ratio=0.5)
    steps = pruner.step(interactive=True)
    assert steps is not None
    shown, units = [], 0
    for group in steps:
        if isinstance(group, BranchGroup):
            shown.append(group.name)
            assert group.size() == 1
            if len(shown) != 2:
                group.prune()
        else:
            units += 1
            group.prune()
    assert len(shown) == 4
    assert units
    assert set(gone(pruner)) == {*shown} - {shown[1]}
    assert pruner.current_step == 1
    assert pk.check_exact(original, model, pruner.graph.applied, X)


def test_a_history_takes_branches_out_of_a_copy() -> None:
    model = deep()
    copied = copy.deepcopy(model)
    pruner = pk.BasePruner(model, X, branch_ratio=0.5, pruning_ratio=0.5, iterative_steps=2)
    for _ in range(2):
        pruner.step()
    history = json.loads(json.dumps(pruner.pruning_history()))
    assert sorted(entry[0] for entry in history if entry[0].startswith("branch:")) == sorted(
        f"branch:{name}" for name in gone(pruner)
    )
    graph = pk.DependencyGraph().build_dependency(copied, X)
    graph.load_pruning_history(history)
    assert graph.applied.absent == gone(pruner)
    assert torch.equal(copied(X), model(X))
    other = pk.DependencyGraph().build_dependency(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), X)
    with pytest.raises(pk.ArgumentError, match=r"(?s)history was made for another model.*no such branch"):
        other.load_pruning_history([("branch:layers.0.mlp", True, [])])


def test_a_run_that_was_stored_goes_on() -> None:
    def made() -> tuple[Deep, pk.BasePruner]:
        model = deep()
        return model, pk.BasePruner(model, X, branch_ratio=0.5, pruning_ratio=0.5, iterative_steps=2)

    model, pruner = made()
    pruner.step()
    again, other = made()
    other.resume(pk.Plan.from_json(pruner.graph.applied.to_json()), 1)
    assert gone(other) == gone(pruner)
    again.load_state_dict(model.state_dict())
    for one in (pruner, other):
        one.step()
    assert gone(other) == gone(pruner)
    assert len(gone(other)) == 4
    assert torch.equal(again(X), model(X))
    stranger = pk.BasePruner(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), X)
    with pytest.raises(pk.PlanError, match=r"(?s)made for another model.*branch layers"):
        stranger.resume(pk.Plan(absent=gone(pruner)), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": {"macs": 0.5}}, "(?s)meets a target by depth alone.*plan_to_target"),
        ({"target": {"macs": 0.5}, "by": "both"}, "(?s)meets a target by depth alone.*by='both'"),
        ({"by": "depth"}, 'by="depth" needs a target'),
        ({"calibration": [X]}, "Calibration data of a pruner score branches, and none is to go"),
        ({"branch_ratio": 0.5, "branches": ["layers.0.mlp"]}, "not both"),
        ({"keep_first": 2}, "keep_first is about branches, and none is to go"),
        ({"branch_ratio": 0.5, "ignored_layers": ["layer"]}, "no such layer|No layer|no module|ignored_layers"),
        ({"branch_ratio": 1.5}, r"branch_ratio must lie in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_changes(options: dict[str, Any], message: str) -> None:
    model = deep()
    with pytest.raises(pk.ArgumentError, match=message):
        pk.BasePruner(model, X, **options)
    assert all(torch.equal(value, deep().state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("none", [{"branches": []}, {"branch_ratio": 0.0}])
def test_no_units_go_where_no_branch_is_named(none: dict[str, Any]) -> None:
    model = deep()
    pruner = pk.BasePruner(model, X, iterative_steps=2, **none)
    for _ in range(2):
        pruner.step()
    assert not pruner.graph.applied.cuts
    assert torch.equal(model(X), deep()(X))


def test_no_branch_that_may_go_is_an_error_at_the_last_step() -> None:
    model = deep()
    pruner = pk.BasePruner(model, X, branch_ratio=0.5, iterative_steps=2, ignored_layers=["layers"])
    pruner.step()
    with pytest.raises(pk.NothingToPruneError, match=r"(?s)No branch can go.*is in ignored_layers"):
        pruner.step()
    assert pruner.current_step == 1
    assert torch.equal(model(X), deep()(X))


def test_what_is_ignored_is_found_again_after_a_cut() -> None:
    pruner = pk.BasePruner(deep(), X, branch_ratio=0.75, iterative_steps=3, ignored_layers=["layers.2"])
    for _ in range(3):
        pruner.step()
    assert len(gone(pruner)) == 6
    assert not any(name.startswith("layers.2.") for name in gone(pruner))


def test_the_settings_of_a_project_make_such_a_pruner() -> None:
    pruner = pk.default_registry().pruner(deep(), X, branch_ratio=0.25, iterative_steps=2)
    for _ in range(2):
        pruner.step()
    assert len(pruner.graph.applied.absent) == 2
    by_target = pk.default_registry().pruner(deep(), X, target={"params": 0.7}, by="depth")
    by_target.step()
    assert by_target.graph.applied.absent
    with pytest.raises(pk.ArgumentError, match="takes a ratio, not a target"):
        pk.default_registry().pruner(deep(), X, target={"params": 0.7})


def test_a_ratio_in_steps_ends_where_one_step_does() -> None:
    """Branches whose scores don't change go in the same order, however many steps there are."""
    ends = []
    for steps in (1, 2, 5):
        pruner = pk.BasePruner(scaled(TRAINED), X, branch_ratio=0.5, iterative_steps=steps)
        for _ in range(steps):
            pruner.step()
        ends.append(gone(pruner))
    assert ends[0] == ends[1] == ends[2]
    assert lost(deep(), ends[0]) > 0

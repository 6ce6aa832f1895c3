"""Arguments of the wrong form, and misspelt ones, are told before anything is traced."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.plugin import Settings
from prunekit_core.arguments import FORMS
from prunekit_core.graph.recording_settings import RecordingSettings
from prunekit_plugins.classic.options import BranchOptions, FurtherOptions, PrunerOptions, StepOptions
from prunekit_plugins.classic.settings import PrunerSettings
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.prune.settings import UNRECORDED, PruneSettings


class Loud(nn.Module):
    """A model that can't be traced without anyone noticing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("traced")


X = torch.randn(2, 4)
WRONG: dict[str, list[Any]] = {
    "ignored_layers": ["a", nn.Linear, nn.Linear(2, 2), 5],
    "root_module_types": [nn.Linear, "Linear", [3]],
    "pruning_ratio_dict": [0.5, ["a"]],
    "head_pruning_ratio_dict": [0.5, ["a"]],
    "in_channel_groups": [4, ["a"]],
    "out_channel_groups": [4, ["a"]],
    "num_heads": [4, ["a"], {"a": 4}],
    "customized_pruners": [5, [nn.Linear]],
    "unwrapped_parameters": [5, "a"],
    "momentum_copies": [5, ["teacher"]],
    "free_outputs": ["states", 5],
    "modes": [True, (), ["train"]],
    "global_pruning": ["no", [True]],
    "isomorphic": ["no"],
    "uniform": ["yes"],
    "prune_num_heads": ["yes", 0.5],
    "prune_head_dims": ["no"],
    "reestimate_batchnorm": ["no"],
    "keep_names": ["no"],
    "forward_fn": [5, "forward"],
    "output_transform": [5],
    "target": [0.5, "macs", ["macs"]],
    "optimizer": [5, torch.optim.Adam, [5]],
    "compensation": [5],
    "registry": [5, "default"],
    "verify": [True, "sometimes"],
}
"""Every argument with a form, with values that haven't it."""


def test_every_form_is_tried() -> None:
    assert WRONG.keys() == FORMS.keys()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_form_is_told_with_an_example(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(pk.ArgumentError) as caught:
            pk.prune(Loud(), X, **{name: value})
        assert caught.value.headline.startswith(name), caught.value
        assert FORMS[name].example in caught.value.hint or name == "free_outputs"


def test_the_example_of_a_target_is_a_target() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(pk.ArgumentError, match=r"target is a mapping") as caught:
        pk.prune(model, X, target=0.5)  # type: ignore[arg-type]
    assert '{"macs": 0.5}' in caught.value.hint
    assert "ratio=0.5" in caught.value.hint
    result = pk.prune(model, X, target={"macs": 0.5})
    before, after = result.preview.costs["macs"]
    assert after <= 0.5 * before


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("global_prunin", "global_pruning"), ("ration", "ratio"), ("free_output", "free_outputs")]
)
def test_a_misspelt_argument_is_told_with_what_was_meant(misspelt: str, meant: str) -> None:
    with pytest.raises(pk.KeywordError, match=f"prune has no argument called '{misspelt}'") as caught:
        pk.prune(Loud(), X, **{misspelt: 0.5})
    assert caught.value.hint.startswith(f"did you mean '{meant}'")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_the_ratio_of_a_pruner_is_not_that_of_prune() -> None:
    with pytest.raises(pk.KeywordError, match="no argument called 'pruning_ratio'") as caught:
        pk.prune(Loud(), X, pruning_ratio=0.5)
    assert "iterative_steps" not in caught.value.hint
    with pytest.raises(pk.ArgumentError, match="prune\\(\\) cuts once"):
        pk.prune(Loud(), X, iterative_steps=3)


def test_a_class_is_no_criterion() -> None:
    from prunekit_plugins.importance import GroupMagnitudeImportance

    with pytest.raises(pk.ArgumentError, match="an object, not a class") as caught:
        pk.prune(Loud(), X, importance=GroupMagnitudeImportance)  # type: ignore[arg-type]
    assert caught.value.hint == "make one: importance=GroupMagnitudeImportance()"


@pytest.mark.parametrize("listed", [lambda m: iter([m[0]]), lambda m: (m[0],), lambda m: {"0"}, lambda m: m[:1]])
def test_what_can_be_iterated_is_a_list_of_layers(listed: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3))
    report = pk.prune(model, X, ignored_layers=listed(model)).report
    assert report.left == {"0": "ignored layer 0"}
    assert report.pruned == {"1": (6, 3)}


def test_branches_may_be_named_by_what_can_be_read_once() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(x).relu())

    model = nn.Sequential(Block(), Block(), nn.Linear(4, 3))
    result = pk.prune(model, X, branches=iter(["0.up"]))  # type: ignore[arg-type]
    assert (result.plan.absent, result.report.pruned) == (("0.up",), {})
    assert model[0].up.out_features == 8  # the second block, under its new number
    assert "'0.up'" in str(result.protocol.arguments["branches"])


@pytest.mark.parametrize("name", ["given", "depth", "self"])
def test_names_that_are_used_inside_are_no_arguments(name: str) -> None:
    with pytest.raises(pk.ArgumentError, match=f"{name}"):
        pk.prune(Loud(), X, **{name: 1})


def test_type_checkers_are_told_every_argument() -> None:
    """Of functions that hand arguments on to a pruner: those of `BasePruner` under their own names, and no others."""
    pruner = {*inspect.signature(pk.BasePruner).parameters} - {"renamed"}
    handed = {"model", "example_inputs", "importance"}
    assert set(PrunerOptions.__annotations__) == pruner - handed
    branches = set(BranchOptions.__annotations__)
    assert set(StepOptions.__annotations__) == pruner - handed - branches - {"registry"}
    own = {*inspect.signature(pk.prune).parameters}
    stepwise = {"pruning_ratio", "iterative_steps", "iterative_pruning_ratio_scheduler"}
    assert set(FurtherOptions.__annotations__) == pruner - handed - own - stepwise
    assert {field.name for field in attrs.fields(Settings)} - {"demands"} < pruner


def fields(value: type[Any]) -> set[str]:
    return {field.name for field in attrs.fields(value)}


def test_sensitivity_takes_nothing_about_branches() -> None:
    for name in ("branch_ratio", "by", "target", "calibration"):
        with pytest.raises(pk.KeywordError, match=f"sensitivity has no argument called '{name}'"):
            pk.sensitivity(Loud(), X, [X], **{name: None})  # type: ignore[arg-type]


def test_every_argument_is_in_one_of_the_values_that_are_made_of_them() -> None:
    """They are picked by name: one that is in no value would be taken and do nothing.

    What a serving profile demands is no argument: it is found where ``serve`` is given.
    """
    of_pruner = {*inspect.signature(pk.BasePruner).parameters} - {"model", "example_inputs", "registry", "renamed"}
    depth = fields(DepthSettings) - fields(Settings)
    own = fields(PrunerSettings) - {"pruning", "recording", "depth"}
    values = [fields(Settings), fields(RecordingSettings), own, depth]
    assert sorted(of_pruner | {"more_inputs", "demands"}) == sorted(name for value in values for name in value)
    of_prune = {*inspect.signature(pk.prune).parameters} - {"model", "example_inputs", "registry", "options"}
    assert fields(DepthSettings) - {"uniform"} < of_prune  # one of the options
    of_prune -= fields(DepthSettings) - of_pruner - {"target"}
    among_options = {"expert_pruning_ratio"}  # it decides whether experts have a criterion of their own
    assert fields(PruneSettings) - {"given", "depth", "demands"} <= of_prune | among_options
    assert of_prune - fields(PruneSettings) < of_pruner | {"serve"}  # what it stands for is settled before
    assert set(UNRECORDED) - {"demands"} < {*inspect.signature(pk.prune).parameters}


def test_a_criterion_and_a_schedule_are_looked_up_once() -> None:
    asked: list[str] = []

    def criterion() -> Any:
        asked.append("criterion")
        return lambda group: torch.arange(group.size(), dtype=torch.float)

    def schedule(ratio: float, steps: int) -> list[float]:
        asked.append(f"schedule {ratio} in {steps}")
        return pk.linear_scheduler(ratio, steps)

    mine = SimpleNamespace(
        ones=plugin.hookimpl(lambda: {"own": criterion}, specname="prunekit_importance"),
        more=plugin.hookimpl(lambda: {"own": schedule}, specname="prunekit_schedules"),
    )
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    pk.BasePruner(
        *(model, X, "own"),
        iterative_steps=2,
        iterative_pruning_ratio_scheduler="own",
        registry=pk.Registry(extra={"mine": mine}),
    )
    assert asked == ["criterion", "schedule 0.5 in 2"]

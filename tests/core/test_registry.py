"""The registry: precedence, conflicts, misspellings, blocked and broken plugins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import prunekit_core as pk
from prunekit_core.registry import HOOKS
from tests.models import Chain


def plugin(**hooks: Any) -> ModuleType:
    """Makes a plugin module whose hooks return the given mappings."""
    module = ModuleType("made_in_a_test")
    for name, value in hooks.items():
        setattr(module, name, pk.hookimpl(specname=name)(lambda value=value: value))
    return module


class Distribution:
    """An installed distribution, as entry points see it."""

    def __init__(self, name: str, version: str = "1.0") -> None:
        self.name, self.version = name, version


class Point:
    """An entry point of a made-up distribution."""

    group = "prunekit"

    def __init__(self, dist: str, name: str, loaded: object) -> None:
        self.name, self.value = name, f"{dist}.{name}"
        self.dist = Distribution(dist)
        self._loaded = loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def install(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    installed = list(metadata.entry_points(group="prunekit"))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [*installed, *points])


def lowest(group: pk.Group) -> torch.Tensor:
    return -torch.arange(group.size(), dtype=torch.float32)


def test_all_built_ins_come_in_through_entry_points() -> None:
    registry = pk.Registry()
    assert [p.name for p in registry.plugins() if p.error or p.blocked or p.distribution != "prunekit"] == []
    assert {"magnitude", "random"} <= registry.entries("prunekit_importance").keys()
    assert {"macs", "params"} <= registry.entries("prunekit_budgets").keys()
    assert registry.entries("prunekit_replacements").keys() == {"multihead_attention"}
    empty = pk.Registry(entry_points=False)
    assert all(not empty.entries(hook) for hook in HOOKS)


def test_each_built_in_can_be_blocked() -> None:
    for name in ("prunekit:importance", "importance"):
        registry = pk.Registry(block=[name])
        assert [p.name for p in registry.plugins() if p.blocked] == ["prunekit:importance"]
        with pytest.raises(pk.ArgumentError, match="known: none"):
            pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry)
    assert not pk.Registry(block=["prunekit"]).entries("prunekit_op_rules")


def test_without_rules_everything_is_pinned_and_said() -> None:
    registry = pk.Registry(block=["ops"])
    with pytest.raises(pk.NothingToPruneError, match="no rule for this operation"):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry)


def test_an_argument_wins_over_a_third_party_and_that_over_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Point("stranger", "more", plugin(prunekit_importance={"magnitude": lambda: lowest})))
    third = pk.Registry()
    assert third.named("prunekit_importance", "magnitude")() is lowest
    entry = third.entries("prunekit_importance")["magnitude"]
    assert (entry.owner.name, entry.overrides) == ("stranger:more", ("prunekit:importance",))
    mine = pk.Registry(extra={"mine": plugin(prunekit_importance={"magnitude": lambda: None})})
    assert mine.named("prunekit_importance", "magnitude")() is None
    assert mine.entries("prunekit_importance")["magnitude"].owner.name == "mine"


def test_two_third_parties_with_one_key_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (plugin(prunekit_importance={"mine": lambda: lowest}) for _ in range(2))
    install(monkeypatch, Point("first", "a", one), Point("second", "b", two))
    with pytest.raises(pk.PluginError, match=r"claim the same key 'mine'") as caught:
        pk.Registry()
    assert "first:a" in str(caught.value)
    assert "second:b" in str(caught.value)
    assert str(caught.value).count(__file__) == 2
    assert pk.Registry(block=["second"]).entries("prunekit_importance")["mine"].owner.name == "first:a"


def test_one_entry_point_name_in_two_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        Point("first", "same", plugin(prunekit_importance={"a": lambda: lowest})),
        Point("second", "same", plugin(prunekit_importance={"b": lambda: lowest})),
    )
    assert {"a", "b"} <= pk.Registry().entries("prunekit_importance").keys()


def test_a_broken_plugin_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def angry() -> Mapping[str, Any]:
        raise RuntimeError("no luck today")

    module = ModuleType("angry")
    module.prunekit_importance = pk.hookimpl(specname="prunekit_importance")(angry)  # type: ignore[attr-defined]
    install(
        monkeypatch, Point("stranger", "torn", ImportError("no module named torn")), Point("stranger", "angry", module)
    )
    registry = pk.Registry()
    errors = {p.name: p.error for p in registry.plugins() if p.error}
    assert errors == {
        "stranger:torn": "stranger.torn: ImportError: no module named torn",
        "stranger:angry": "prunekit_importance: RuntimeError: no luck today",
    }
    with pytest.raises(pk.ArgumentError, match="stranger:torn could not be loaded"):
        registry.named("prunekit_importance", "torn")
    assert pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry).report.pruned == {"layers.0": (8, 4)}


def test_a_misspelt_hook_is_an_error_with_the_nearest_name() -> None:
    @pk.hookimpl
    def prunekit_importances() -> Mapping[str, Any]:
        return {}

    with pytest.raises(pk.PluginError, match=r"(?s)prunekit_importances in mine.*did you mean 'prunekit_importance'"):
        pk.Registry(extra={"mine": SimpleNamespace(prunekit_importances=prunekit_importances)})


def test_a_hook_that_returns_no_mapping() -> None:
    with pytest.raises(pk.PluginError, match=r"(?s)prunekit_importance returned no mapping.*it returned list"):
        pk.Registry(extra={"mine": plugin(prunekit_importance=["a"])})


def test_two_registries_never_meet() -> None:
    one = pk.Registry(extra={"mine": plugin(prunekit_importance={"lowest": lambda: lowest})})
    two = pk.Registry()
    assert "lowest" in one.entries("prunekit_importance")
    assert "lowest" not in two.entries("prunekit_importance")
    assert pk.default_registry() is pk.default_registry()
    a, b = Chain(4, 8, 3), Chain(4, 8, 3)
    b.load_state_dict(a.state_dict())
    first = a.layers[0].weight[:4].clone()
    pk.prune(a, torch.randn(1, 4), importance="lowest", registry=one)
    assert torch.equal(a.layers[0].weight, first)


def test_the_most_specific_layer_type_wins() -> None:
    class Special(nn.Linear):
        pass

    special = pk.LayerType("special")
    registry = pk.Registry(extra={"mine": plugin(prunekit_layer_types={f"{__name__}.{Special.__qualname__}": special})})
    assert registry.layer_type(Special(2, 2)) is special
    assert registry.layer_type(nn.Linear(2, 2)).name == "linear"
    assert registry.layer_type(nn.ReLU()) is None


def test_an_op_rule_from_outside_frees_what_was_pinned() -> None:
    class Sorted(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.frac(self.layers[0](x)).cummax(0).values
            return self.layers[1](hidden)

    model = Sorted(4, 8, 3)
    with pytest.raises(pk.NothingToPruneError, match="aten::cummax"):
        pk.prune(model, torch.randn(2, 4))

    def cummax(call: pk.OpCall) -> list[list[pk.Axis]]:
        axes = list(call["self"].axes)
        call.pin(axes[call["dim"]], "order matters")
        return [axes, axes]

    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::cummax": cummax})})
    result = pk.prune(model, torch.randn(2, 4), registry=registry)
    assert result.report.pruned == {"layers.0": (8, 4)}


def test_a_rule_that_raises_pins_and_is_reported() -> None:
    def torn(call: pk.OpCall) -> None:
        raise ZeroDivisionError("oops")

    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::relu": torn})})
    with pytest.raises(pk.NothingToPruneError, match="its rule raised ZeroDivisionError: oops"):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry)


def test_a_rule_that_contradicts_its_shapes_pins_and_is_reported() -> None:
    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::relu": lambda call: [pk.Axis(5)]})})
    graph = pk.DependencyGraph(registry).build_dependency(Chain(4, 8, 3), torch.randn(1, 4))
    assert graph.report().not_understood == (
        "aten::relu in the model: its rule gives the sizes (5,) to an output of shape (1, 8)",
    )


def test_importing_the_core_loads_no_plugin_and_no_extra() -> None:
    program = (
        "import sys, prunekit_core; "
        "print([n for n in ('prunekit_plugins', 'torchvision', 'timm', 'transformers', 'typer', 'rich', 'sklearn') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The registry: precedence, conflicts, misspellings, blocked and broken plugins."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import Axis, LayerType, OpCall, Replacement, hookimpl
from prunekit_core.plugins.registry import HOOKS
from tests.models import Chain

ROOT = Path(__file__).resolve().parents[2]


def plugin(**hooks: Any) -> ModuleType:
    """Makes a plugin module whose hooks return the given mappings."""
    module = ModuleType("made_in_a_test")
    for name, value in hooks.items():
        setattr(module, name, hookimpl(specname=name)(lambda value=value: value))
    return module


class Distribution:
    """An installed distribution, as entry points see it."""

    def __init__(self, name: str, version: str = "1.0") -> None:
        self.name, self.version, self.files = name, version, None

    def locate_file(self, path: str) -> str:
        return "a folder"


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


@torch.library.custom_op("prunekit_tests::running", mutates_args=())
def running(x: torch.Tensor, dim: int) -> torch.Tensor:
    """An operation that no plugin knows, and that can't be taken apart."""
    return x.cummax(dim).values


@running.register_fake
def _(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.empty_like(x)


def line_of(function: Any) -> int:
    line: int = function.__code__.co_firstlineno
    return line


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
    registry = pk.Registry()
    assert "mine" not in registry.entries("prunekit_importance")
    with pytest.raises(pk.PluginError, match=r"claim the same key 'mine'") as caught:
        registry.named("prunekit_importance", "mine")
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
    module.prunekit_importance = hookimpl(specname="prunekit_importance")(angry)  # type: ignore[attr-defined]
    install(
        monkeypatch, Point("stranger", "torn", ImportError("no module named torn")), Point("stranger", "angry", module)
    )
    registry = pk.Registry()
    errors = {p.name: p.error for p in registry.plugins() if p.error}
    assert errors == {
        "stranger:torn": f"A plugin can't be loaded. ImportError: no module named torn "
        f"({__file__}:{line_of(Point.load) + 2}) [stranger:torn 1.0 (a folder)] "
        "correct it, or leave the plugin out: PRUNEKIT_BLOCK=stranger:torn",
        "stranger:angry": "A plugin's prunekit_importance raised. RuntimeError: no luck today "
        f"({__file__}:{line_of(angry) + 1}) [stranger:angry 1.0 ({__file__}:{line_of(angry)})] "
        "correct it, or leave the plugin out: PRUNEKIT_BLOCK=stranger:angry",
    }
    with pytest.raises(pk.ArgumentError, match="stranger:torn could not be loaded"):
        registry.named("prunekit_importance", "torn")
    assert pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry).report.pruned == {"layers.0": (8, 4)}


def test_a_misspelt_hook_is_an_error_with_the_nearest_name() -> None:
    @hookimpl
    def prunekit_importances() -> Mapping[str, Any]:
        return {}

    with pytest.raises(pk.PluginError, match=r"(?s)no hook prunekit_importances.*did you mean 'prunekit_importance'"):
        pk.Registry(extra={"mine": SimpleNamespace(prunekit_importances=prunekit_importances)})


def test_a_hook_that_returns_no_mapping() -> None:
    with pytest.raises(pk.PluginError, match=r"(?s)prunekit_importance returned no mapping.*it returned list"):
        pk.Registry(extra={"mine": plugin(prunekit_importance=["a"])})


WRONG_ENTRIES: list[tuple[str, dict[Any, Any], str]] = [
    ("prunekit_op_rules", {"relu": lowest}, "wrong key.*qualified name.*is 'relu'"),
    ("prunekit_op_rules", {"aten::relu": 3}, "wrong value.*an OpRule or a function, and is 3 for 'aten::relu'"),
    ("prunekit_layer_types", {nn.Linear: lowest}, "wrong value.*a LayerType, and is <function lowest"),
    ("prunekit_layer_types", {"Linear": LayerType("own")}, "wrong key.*a module class or its dotted name"),
    ("prunekit_layer_types", {int: LayerType("own")}, "wrong key.*a module class or its dotted name"),
    ("prunekit_importance", {nn.Linear: dict}, "wrong key.*a name"),
    ("prunekit_importance", {"": dict}, "wrong key.*a name, and is ''"),
    ("prunekit_pruners", {"mine": lowest}, "wrong value.*a class"),
    ("prunekit_checks", {"mine": lowest}, "wrong key.*a hook and a key of it"),
    ("prunekit_replacements", {"mine": nn.Linear}, "wrong value.*a Replacement"),
    (
        "prunekit_replacements",
        {"a": Replacement("b", nn.Linear, lambda m: None)},
        "wrong key.*'a' names a Replacement 'b'",
    ),
    ("prunekit_commands", {"go": "echo"}, "wrong value.*something that can be called, and is 'echo' for 'go'"),
]


@pytest.mark.parametrize(("hook", "entries", "message"), WRONG_ENTRIES)
def test_wrong_entries_are_told_with_file_and_line(hook: str, entries: dict[Any, Any], message: str) -> None:
    with pytest.raises(pk.PluginError, match=f"(?s){hook} returned a {message}") as caught:
        pk.Registry(extra={"mine": plugin(**{hook: entries})})
    assert f"mine ({__file__}:" in caught.value.where


GOOD: dict[str, tuple[Any, Any]] = {
    "prunekit_op_rules": ("example::op", lowest),
    "prunekit_layer_types": ("example.Layer", LayerType("own")),
    "prunekit_pruners": ("own", pk.BasePruner),
    "prunekit_replacements": ("own", Replacement("own", nn.Module, lambda module: None)),
    "prunekit_checks": (("prunekit_schedules", "own"), dict),
    "prunekit_settings": ("own", attrs.make_class("Own", [])),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_plugin_returns_through_a_hook_is_found(hook: str) -> None:
    key, value = GOOD.get(hook, ("own", dict))
    registry = pk.Registry(extra={"mine": plugin(**{hook: {key: value}})})
    entry = registry.entries(hook)[key]
    assert (entry.value, entry.owner.name, entry.overrides) == (value, "mine", ())
    assert registry.named(hook, key) is value
    assert all(key not in registry.entries(other) for other in HOOKS if other != hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_used_by_a_built_in_plugin(hook: str) -> None:
    owners = {entry.owner.distribution for entry in pk.Registry(extra={}).entries(hook).values()}
    assert owners == {"prunekit"}


def sections() -> dict[str, str]:
    parts = re.split(r"^## `(prunekit_\w+)\(.*$", (ROOT / "docs/hooks.md").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("hook", HOOKS)
def test_the_page_of_hooks_names_what_is_built_in(hook: str) -> None:
    built_in = re.search(r"Built in: (.*?)\.(?:\s|$)", sections()[hook], flags=re.DOTALL)
    assert built_in is not None, "the section has no sentence that starts with 'Built in:'"
    if hook not in ("prunekit_op_rules", "prunekit_layer_types", "prunekit_checks"):  # these are described
        named = re.findall(r"`([\w-]+)`", re.sub(r"\(.*?\)", "", built_in[1], flags=re.DOTALL))
        assert sorted({name for name in named if name in registered(hook)}) == sorted(registered(hook))


def registered(hook: str) -> list[str]:
    return [str(key) for key in pk.default_registry().entries(hook)]


def test_the_environment_blocks_plugins_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_BLOCK", "schedules,prunekit:budgets nosuch")
    registry = pk.Registry(block=["ops"])
    assert {p.name: p.blocked_by for p in registry.plugins() if p.blocked} == {
        "prunekit:budgets": "PRUNEKIT_BLOCK",
        "prunekit:ops": "an argument",
        "prunekit:schedules": "PRUNEKIT_BLOCK",
    }
    assert registry.unused_blocks() == {"nosuch": "PRUNEKIT_BLOCK"}
    assert not registry.entries("prunekit_budgets")
    with pytest.raises(pk.ArgumentError, match="No schedule is registered as 'cubic'") as caught:
        registry.named("prunekit_schedules", "cubic")
    assert "prunekit:schedules is blocked by PRUNEKIT_BLOCK" in caught.value.why.split("; ")
    isolated = pk.Registry(entry_points=False, extra={"budgets": plugin(prunekit_budgets={"own": dict})})
    assert list(isolated.entries("prunekit_budgets")) == ["own"]
    monkeypatch.delenv("PRUNEKIT_BLOCK")
    assert [p.name for p in pk.Registry().plugins() if p.blocked] == []


def test_the_origin_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Point("stranger", "more", plugin(prunekit_op_rules={"aten::relu": lowest})))
    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::tanh": lowest})})
    relu = registry.rule_origin(torch.ops.aten.relu.default)
    assert relu is not None
    assert (relu.key, relu.owner.name, relu.owner.version) == ("aten::relu", "stranger:more", "1.0")
    assert (relu.site, relu.overrides) == (f"{__file__}:{line_of(lowest)}", ("prunekit:ops",))
    inplace = registry.rule_origin(torch.ops.aten.tanh_.default)
    assert inplace is not None
    assert (inplace.key, inplace.owner.name) == ("aten::tanh", "mine")
    tagged = registry.rule_origin(torch.ops.aten.special_i1e.default)
    assert tagged is not None
    assert tagged.key == torch.Tag.pointwise
    assert registry.rule_origin(torch.ops.prunekit_tests.running.default) is None


def test_one_plugin_under_two_names() -> None:
    mine = plugin(prunekit_budgets={"own": dict})
    with pytest.raises(pk.PluginError, match=r"(?s)can't be registered.*where: two .*registered already, as one"):
        pk.Registry(extra={"one": mine, "two": mine})


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

    special = LayerType("special")
    registry = pk.Registry(extra={"mine": plugin(prunekit_layer_types={f"{__name__}.{Special.__qualname__}": special})})
    assert registry.layer_type(Special(2, 2)) is special
    assert registry.layer_type(nn.Linear(2, 2)).name == "linear"
    assert registry.layer_type(nn.ReLU()) is None


def test_an_op_rule_from_outside_frees_what_was_pinned() -> None:
    class Sorted(Chain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layers[1](running(torch.frac(self.layers[0](x)), 0))
            return result

    model = Sorted(4, 8, 3)
    with pytest.raises(pk.NothingToPruneError, match="prunekit_tests::running"):
        pk.prune(model, torch.randn(2, 4))

    def along(call: OpCall) -> list[Axis]:
        axes = list(call["x"].axes)
        call.pin(axes[call["dim"]], "order matters")
        return axes

    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"prunekit_tests::running": along})})
    result = pk.prune(model, torch.randn(2, 4), registry=registry)
    assert result.report.pruned == {"layers.0": (8, 4)}


def test_a_rule_that_raises_pins_and_is_reported() -> None:
    def torn(call: OpCall) -> None:
        raise ZeroDivisionError("oops")

    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::relu": torn})})
    with pytest.raises(pk.NothingToPruneError, match="its rule raised ZeroDivisionError: oops"):
        pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry)


def test_a_rule_that_contradicts_its_shapes_pins_and_is_reported() -> None:
    def rule(call: OpCall) -> list[Axis]:
        return [Axis(5)]

    registry = pk.Registry(extra={"mine": plugin(prunekit_op_rules={"aten::relu": rule})})
    graph = pk.DependencyGraph(registry).build_dependency(Chain(4, 8, 3), torch.randn(1, 4))
    assert graph.report().not_understood == (
        (
            "aten::relu in the model: its rule gives the sizes (5,) to an output of shape (1, 8) "
            f"(rule of mine in {__file__}:{line_of(rule)})"
        ),
    )


def test_importing_the_doors_loads_no_plugin_no_torch_and_no_extra() -> None:
    program = (
        "import sys, prunekit, prunekit.plugin; "
        "print([n for n in ('prunekit_plugins', 'torch', 'torchvision', 'timm', 'transformers', 'typer', 'rich') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

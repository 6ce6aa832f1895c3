"""Keys: who gets one that several plugins claim, what is one key, and keys that match nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.app import run
from tests.models import Chain
from tests.plugins.installing import HEAD, Installed, install

EXAMPLE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
HOOK = "@plugin.hookimpl\n"
MARK = "@plugin.hookimpl"

Install = Callable[..., Installed]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(name: str, hook: str, entries: str, head: str = "") -> Installed:
        return install(tmp_path, monkeypatch, name, f"{head}{HOOK}def {hook}():\n    return {entries}\n", head=HEAD)

    return put


def given(hook: str, entries: dict[Any, Any]) -> dict[str, object]:
    """The same, passed as an argument."""
    return {
        "given": type("Given", (), {"implementation": staticmethod(plugin.hookimpl(lambda: entries, specname=hook))})
    }


def both(one: Installed, two: Installed, hook: str) -> str:
    return f"{hook}: {one.title} ({one.line_of(MARK)}) and {two.title} ({two.line_of(MARK)})"


# several plugins, one key

USES: dict[str, tuple[str, Callable[[pk.Registry], object]]] = {
    "prunekit_importance": (
        "{'mine': dict}",
        lambda registry: pk.prune(Chain(4, 8, 3), EXAMPLE, importance="mine", registry=registry),
    ),
    "prunekit_schedules": ("{'mine': dict}", lambda registry: registry.named("prunekit_schedules", "mine")),
    "prunekit_budgets": (
        "{'mine': lambda analysis, kept: 1.0}",
        lambda registry: pk.prune(Chain(4, 8, 3), EXAMPLE, target={"mine": 0.5}, registry=registry),
    ),
    "prunekit_compensators": (
        "{'mine': dict}",
        lambda registry: pk.prune(
            Chain(4, 8, 3), EXAMPLE, calibration=[EXAMPLE], compensation="mine", registry=registry
        ),
    ),
    "prunekit_allocators": (
        "{'mine': dict}",
        lambda registry: pk.prune(
            Chain(4, 8, 3), EXAMPLE, target={"params": 0.5}, allocation="mine", registry=registry
        ),
    ),
    "prunekit_weights": ("{'mine': dict}", lambda registry: registry.weights("model.mine", Chain(4, 8, 3))),
    "prunekit_op_rules": (
        "{'aten::tanh': lambda call: list(call['self'].axes)}",
        lambda registry: pk.prune(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), EXAMPLE, registry=registry
        ),
    ),
    "prunekit_layer_types": (
        "{nn.Tanh: plugin.LayerType('tanh')}",
        lambda registry: pk.prune(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), EXAMPLE, registry=registry
        ),
    ),
    "prunekit_replacements": (
        "{'mine': plugin.Replacement('mine', nn.Tanh, lambda module: None)}",
        lambda registry: pk.prune(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), EXAMPLE, registry=registry
        ),
    ),
}
"""Hook to what two plugins register, and who asks for it."""


@pytest.mark.parametrize("hook", USES)
def test_a_key_that_two_plugins_claim_is_an_error_for_who_asks_for_it(hook: str, put: Install) -> None:
    entries, use = USES[hook]
    one, two = put("one", hook, entries), put("two", hook, entries)
    registry = pk.Registry()
    assert registry.broken() == []
    assert pk.prune(Chain(4, 8, 3), EXAMPLE, registry=registry).report.pruned == {"layers.0": (8, 4)}
    with pytest.raises(pk.PluginError, match="Two plugins claim the same key") as caught:
        use(registry)
    assert caught.value.where == both(one, two, hook)
    assert caught.value.hint == "block one of them, such as PRUNEKIT_BLOCK=two:point"
    with pytest.raises(pk.PluginError, match="Two plugins claim the same key"):
        pk.Registry(strict=True)
    blocked = pk.Registry(block=["two"])
    assert "one:point" in {entry.owner.name for entry in blocked.entries(hook).values()}
    assert pk.Registry(block=["one", "two"]).contests(hook) == {}


def test_the_built_in_entry_does_not_step_in_for_a_key_that_two_plugins_claim(put: Install) -> None:
    for name in ("one", "two"):
        put(name, "prunekit_importance", "{'random': dict}")
    with pytest.raises(pk.PluginError, match="Two plugins claim the same key 'random'"):
        pk.prune(Chain(4, 8, 3), EXAMPLE, importance="random", registry=pk.Registry())


def test_an_argument_wins_over_both(put: Install) -> None:
    for name in ("one", "two"):
        put(name, "prunekit_importance", "{'random': dict}")
    entry = pk.Registry(extra=given("prunekit_importance", {"random": list})).entries("prunekit_importance")["random"]
    assert (entry.value, entry.owner.name) == (list, "given")
    assert entry.overrides == ("prunekit:importance", "one:point", "two:point")


def test_two_arguments_with_one_key_are_an_error_at_once() -> None:
    first, second = (given("prunekit_importance", {"mine": dict})["given"] for _ in range(2))
    with pytest.raises(pk.PluginError, match=r"(?s)the same key 'mine'.*first \(.*second \("):
        pk.Registry(extra={"first": first, "second": second})


def test_a_command_that_two_plugins_claim(put: Install, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (put(name, "prunekit_commands", "{'greet': lambda: None}") for name in ("one", "two"))
    for words in (["greet"], ["greet", "you", "--loudly"]):
        assert run(words) == 1
        assert both(one, two, "prunekit_commands") in capsys.readouterr().err
    assert run(["plugins"]) == 0
    assert "nobody gets this: Two plugins claim the same key 'greet'." in capsys.readouterr().out
    assert run(["plugins", "--json"]) == 0
    contested = json.loads(capsys.readouterr().out)["contested"]
    assert contested == [{"hook": "prunekit_commands", "name": "greet", "plugins": ["one:point", "two:point"]}]


def test_one_module_named_by_two_distributions_is_registered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install(tmp_path, monkeypatch, "one", f"{HOOK}def prunekit_importance():\n    return {{'mine': dict}}\n")
    install(tmp_path, monkeypatch, "two", "", loads=first.module)
    registry = pk.Registry()
    assert registry.entries("prunekit_importance")["mine"].owner.name == "one:point"
    (broken,) = (p for p in registry.plugins() if p.error)
    error = broken.problem()
    assert (error.headline, error.why) == ("A plugin can't be registered.", "it is registered already, as one:point")
    assert error.where == f"two:point 1.2 ({first.path}:1)"


# what a broken plugin would have brought

HALF = f"{HOOK}def prunekit_budgets():\n    return {{'wrong': 3}}\n"


def test_what_only_a_broken_plugin_brings_is_an_error_that_names_it(
    put: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = put("half", "prunekit_importance", "{'mine': dict, 'magnitude': dict}", head=HALF)
    where = f"half:point 1.2 ({broken.line_of(MARK)})"
    registry = pk.Registry()
    with pytest.raises(pk.PluginError) as caught:
        pk.prune(Chain(4, 8, 3), EXAMPLE, importance="mine", registry=registry)
    assert (caught.value.headline, caught.value.where) == ("The plugin that brings 'mine' is broken.", where)
    assert caught.value.why == (
        "A plugin's prunekit_budgets returned a wrong value. "
        "it must be something that can be called, and is 3 for 'wrong'"
    )
    assert caught.value.hint == "correct it, or leave the plugin out: PRUNEKIT_BLOCK=half:point"
    assert registry.entries("prunekit_importance")["magnitude"].owner.distribution == "prunekit"
    monkeypatch.chdir(tmp_path)
    assert run(["prune", "torch.nn:Linear", "--input", "1,4", "--importance", "mine"]) == 1
    assert "The plugin that brings 'mine' is broken." in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ['importance = "mine"', 'importance = { name = "mine", p = 2 }', "target = { mine = 1 }"]
)
def test_settings_that_name_what_a_broken_plugin_brings_do_not_take_the_commands_along(
    setting: str, put: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("half", "prunekit_importance", "{}", head="nn.Gone\n")
    (tmp_path / "prunekit.toml").write_text(setting)
    monkeypatch.chdir(tmp_path)
    assert run(["plugins"]) == 0
    assert "half:point 1.2" in capsys.readouterr().out
    registry = pk.Registry.from_config(tmp_path / "prunekit.toml")
    with pytest.raises(pk.ArgumentError, match=r"(?s)mine.*"):
        pk.prune(Chain(4, 8, 3), EXAMPLE, **registry.options())


@torch.library.custom_op("prunekit_keys::running", mutates_args=())
def running(x: torch.Tensor, dim: int) -> torch.Tensor:
    """An operation that no plugin knows, and that can't be taken apart."""
    return x.cummax(dim).values


@running.register_fake
def _(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.empty_like(x)


class Runs(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers[1](running(self.layers[0](x), 0))
        return result


def test_an_operation_whose_rule_is_in_a_broken_plugin_is_reported_with_it(put: Install) -> None:
    put("half", "prunekit_op_rules", "{'prunekit_keys::running': lambda call: list(call['x'].axes)}", head=HALF)
    registry = pk.Registry()
    report = pk.DependencyGraph(registry).build_dependency(Runs(4, 8, 3), EXAMPLE).report()
    said = "no rule for this operation (half:point has one, and is broken: see the notes)"
    assert report.not_understood == (f"prunekit_keys::running in the model: {said}",)
    assert [note for note in report.notes if "half:point" in note] == registry.broken()
    with pytest.raises(pk.NothingToPruneError, match="the plugin half:point is broken, and nothing of it is used"):
        pk.prune(Runs(4, 8, 3), EXAMPLE, registry=registry)


# layer types by class and by name

TANH = "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize("key", ["nn.Linear", "'torch.nn.modules.linear.Linear'"])
def test_a_third_partys_layer_type_wins_over_the_built_in_one_by_class_and_by_name(key: str, put: Install) -> None:
    put("mine", "prunekit_layer_types", f"{{{key}: plugin.LayerType('mine')}}")
    registry = pk.Registry()
    found = registry.layer_type(nn.Linear(2, 2))
    assert found is not None
    assert (found.name, registry.layer_owner(nn.Linear(2, 2))) == ("mine", "mine:point")
    entry = registry.entries("prunekit_layer_types")[nn.Linear]
    assert (entry.owner.name, entry.overrides) == ("mine:point", ("prunekit:layers",))


@pytest.mark.parametrize("first", [nn.Tanh, TANH])
@pytest.mark.parametrize("second", [nn.Tanh, TANH])
def test_of_a_class_and_its_name_the_higher_rank_wins(first: Any, second: Any, put: Install) -> None:
    keys = {nn.Tanh: "nn.Tanh", TANH: repr(TANH)}
    put("mine", "prunekit_layer_types", f"{{{keys[first]}: plugin.LayerType('mine')}}")
    registry = pk.Registry(extra=given("prunekit_layer_types", {second: plugin.LayerType("given")}))
    found = registry.layer_type(nn.Tanh())
    assert found is not None
    assert found.name == "given"


def test_a_class_and_its_name_are_one_key_that_two_plugins_claim(put: Install) -> None:
    one = put("one", "prunekit_layer_types", f"{{'{TANH}': plugin.LayerType('one')}}")
    two = put("two", "prunekit_layer_types", "{nn.Tanh: plugin.LayerType('two')}")
    registry = pk.Registry()
    with pytest.raises(pk.PluginError, match=f"Two plugins claim the same key '{TANH}'") as caught:
        registry.layer_type(nn.Tanh())
    assert {one.title, two.title} == {
        part.split(" (")[0] for part in caught.value.where.split(": ", 1)[1].split(" and ")
    }
    assert registry.layer_type(nn.ReLU()) is None


# replacements by class


def test_a_third_partys_replacement_of_a_class_wins_over_the_built_in_one(put: Install) -> None:
    put("mine", "prunekit_replacements", "{'mine': plugin.Replacement('mine', nn.MultiheadAttention, lambda m: None)}")
    registry, attention = pk.Registry(), nn.MultiheadAttention(4, 2)
    found, built_in = registry.replacement(attention), pk.Registry(block=["mine"]).replacement(attention)
    assert found is not None
    assert built_in is not None
    assert (found.name, built_in.name) == ("mine", "multihead_attention")
    named = registry.named("prunekit_replacements", "multihead_attention")  # plans name it
    assert (named.source, named.convert) == (built_in.source, built_in.convert)
    assert registry.replacement(nn.Tanh()) is None


def test_two_third_parties_replacements_of_a_class_are_an_error_for_who_has_it(put: Install) -> None:
    one, two = (
        put(name, "prunekit_replacements", f"{{'{name}': plugin.Replacement('{name}', nn.Tanh, lambda m: None)}}")
        for name in ("one", "two")
    )
    registry = pk.Registry()
    with pytest.raises(pk.PluginError, match=f"Two plugins claim the same key '{TANH}'") as caught:
        registry.replacement(nn.Tanh())
    assert caught.value.where == both(one, two, "prunekit_replacements")
    assert registry.replacement(nn.ReLU()) is None


def test_of_one_plugins_replacements_of_a_class_the_first_one_is_used() -> None:
    pair = {name: plugin.Replacement(name, nn.Tanh, lambda module: None) for name in ("b", "a")}
    found = pk.Registry(extra=given("prunekit_replacements", pair)).replacement(nn.Tanh())
    assert found is pair["b"]


# names of operations


def pins(text: str) -> str:
    return f"lambda call: call.pin(call['self'].axes, '{text}') or list(call['self'].axes)"


@pytest.mark.parametrize("key", ["aten::add", "aten::add.Tensor"])
def test_a_third_partys_rule_for_any_name_wins_over_the_built_in_ones(key: str, put: Install) -> None:
    put("mine", "prunekit_op_rules", f"{{'{key}': lambda call: list(call['self'].axes)}}")
    registry = pk.Registry(extra=None)
    add, built_in = torch.ops.aten.add.Tensor, pk.Registry(block=["mine"]).rule_origin(torch.ops.aten.add.Tensor)
    origin = registry.rule_origin(add)
    assert origin is not None
    assert built_in is not None
    assert (origin.key, origin.owner.name, origin.overrides) == (key, "mine:point", ("prunekit:ops",))
    assert built_in.owner.name == "prunekit:ops"


def test_a_rule_for_a_name_wins_over_a_built_in_one_for_an_overload_of_it() -> None:
    built_in = pk.default_registry().op_rules
    op = next(op for op in overloads_of_aten() if built_in.key(op) == f"{op._schema.name}.{op._overloadname}")
    packet = op._schema.name
    registry = pk.Registry(extra=given("prunekit_op_rules", {packet: lambda call: None}))
    origin = registry.rule_origin(op)
    assert origin is not None
    assert (origin.key, origin.owner.name, origin.overrides) == (packet, "given", ("prunekit:ops",))


def overloads_of_aten() -> list[Any]:
    packets = [getattr(torch.ops.aten, name) for name in ("max", "min", "split", "mean", "pow", "sum", "index_select")]
    return [getattr(packet, name) for packet in packets for name in packet.overloads()]


def test_of_one_rank_the_more_specific_name_wins() -> None:
    def first(call: Any) -> None: ...

    def second(call: Any) -> None: ...

    entries = {"aten::relu": first, "aten::relu.default": second, "aten::relu_": second}
    registry = pk.Registry(extra=given("prunekit_op_rules", entries))
    keys = {op: registry.op_rules.key(op) for op in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)}
    assert list(keys.values()) == ["aten::relu.default", "aten::relu_"]
    ordinary = pk.Registry(extra=given("prunekit_op_rules", {"aten::relu": first}))
    assert ordinary.op_rules.key(torch.ops.aten.relu_.default) == "aten::relu"


def test_a_rule_for_a_tag_replaces_none_that_names_an_operation() -> None:
    registry = pk.Registry(extra=given("prunekit_op_rules", {torch.Tag.pointwise: lambda call: None}))
    named, tagged = (registry.rule_origin(getattr(torch.ops.aten, op).default) for op in ("relu", "special_i1e"))
    assert named is not None
    assert tagged is not None
    assert (named.key, named.owner.name) == ("aten::relu", "prunekit:ops")
    assert (tagged.key, tagged.owner.name, tagged.overrides) == (torch.Tag.pointwise, "given", ("prunekit:ops",))


# keys that match nothing

UNMATCHED = {
    "aten::rellu": "a rule for aten::rellu, and no operator of this name is registered now; did you mean aten::relu?",
    "aten::add.Tensr": "aten::add has no overload 'Tensr', only ",
    "prunekit_keys::runing": (
        "a rule for prunekit_keys::runing, and no operator of this name is registered now; "
        "did you mean prunekit_keys::running?"
    ),
}


@pytest.mark.parametrize("key", UNMATCHED)
def test_rules_for_operations_that_do_not_exist_are_told(
    key: str, put: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = put("mine", "prunekit_op_rules", f"{{'{key}': lambda call: None, 'aten::relu.default': lambda call: None}}")
    (note,) = pk.Registry().notes()
    assert note.startswith(f"mine:point 1.2: {UNMATCHED[key]}")
    assert note.endswith(f"({mine.line_of(MARK)})")
    assert run(["plugins"]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    assert run(["plugins", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


def test_of_libraries_that_are_not_imported_nothing_is_said(put: Install) -> None:
    put("rules", "prunekit_op_rules", "{'nosuchlibrary::op': lambda call: None}")
    put("types", "prunekit_layer_types", "{'nosuchlibrary.Layer': plugin.LayerType('mine')}")
    assert pk.Registry().notes() == []


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("torch.nn.Tanh", f"a layer type for torch.nn.Tanh, which never matches: the class is {TANH}"),
        (
            "torch.nn.modules.activation.Tahn",
            "a layer type for torch.nn.modules.activation.Tahn, and the module has no such class; did you mean Tanh?",
        ),
    ],
)
def test_layer_types_for_names_that_no_class_has_are_told(key: str, text: str, put: Install) -> None:
    mine = put("mine", "prunekit_layer_types", f"{{'{key}': plugin.LayerType('mine')}}")
    assert pk.Registry().notes() == [f"mine:point 1.2: {text} ({mine.line_of(MARK)})"]


def test_of_built_in_keys_nothing_is_said() -> None:
    assert pk.default_registry().notes() == []

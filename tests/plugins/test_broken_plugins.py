"""Plugins that are wrong on purpose, as they are loaded: what is said about each, and that everything else works."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.app import run
from tests.models import Chain
from tests.plugins.installing import HEAD, Installed, install

HOOK = "@plugin.hookimpl\n"
HEALTHY = f"{HOOK}def prunekit_importance():\n    return {{'healthy': dict}}\n"


@attrs.frozen
class Row:
    """A plugin that is wrong, and what is said about it.

    Attributes:
        source: Its module.
        headline: Of the error.
        place: What stands on the line that the error names as the plugin's; ``"entry point"`` for its declaration.
        why: Part of the reason; ``{line}`` stands for the file and line of ``cause``, ``{module}`` for the module.
        hint: Part of what to do, besides leaving the plugin out.
        cause: What stands on the line that raises.
        head: Imports of the module.
        loads: What its entry point names.
    """

    source: str
    headline: str
    place: str
    why: str
    hint: str = "correct it, or leave the plugin out"
    cause: str = ""
    head: str = HEAD
    loads: str = "{module}"


def hook(name: str, body: str) -> str:
    return f"{HOOK}def {name}():\n    {body}\n"


def settings(body: str) -> str:
    """A class of settings that does something when they are made."""
    return (
        "from dataclasses import dataclass\n"
        f"@dataclass\nclass Mine:\n    level: int = 1\n    def __post_init__(self):\n        {body}\n"
        + hook("prunekit_settings", "return {'mine': Mine}")
    )


ROWS: dict[str, Row] = {
    "raises-on-import": Row(
        "nn.NoSuchLayer\n",
        "A plugin can't be loaded.",
        "entry point",
        "AttributeError: module 'torch.nn' has no attribute 'NoSuchLayer' ({line})",
        cause="NoSuchLayer",
    ),
    "lacks-a-package": Row(
        "import nosuchpackage.part\n",
        "A plugin can't be loaded.",
        "entry point",
        "ModuleNotFoundError: No module named 'nosuchpackage' ({line})",
        cause="nosuchpackage",
    ),
    "is-no-python": Row(
        "def prunekit_importance(:\n", "A plugin can't be loaded.", "entry point", "SyntaxError: ", cause="def"
    ),
    "has-no-module": Row(
        "", "A plugin can't be loaded.", "entry point", "there is no module '{module}_gone'", loads="{module}_gone"
    ),
    "has-no-object": Row(
        "", "A plugin can't be loaded.", "entry point", "has no gone", loads="{module}:gone", cause="import torch"
    ),
    "exits-on-import": Row(
        "raise SystemExit('not today')\n",
        "A plugin can't be loaded.",
        "entry point",
        "SystemExit: not today ({line})",
        cause="not today",
    ),
    "wants-a-newer-name": Row(
        "",
        "A plugin can't be loaded.",
        "entry point",
        "cannot import name 'Telepathy' from 'prunekit.plugin'",
        hint="if it is written for another prunekit, install that one: this is ",
        head="from prunekit.plugin import Telepathy\n",
        cause="Telepathy",
    ),
    "needs-a-newer-interface": Row(
        f"prunekit_interface = 99\n{hook('prunekit_importance', 'return {}')}",
        "A plugin needs a newer prunekit.",
        "prunekit_interface = 99",
        f"it needs version 99 of the plugin interface, and prunekit 0.1.0 has version {plugin.INTERFACE}",
        hint="upgrade prunekit",
    ),
    "declares-no-number": Row(
        f"prunekit_interface = '>=1'\n{hook('prunekit_importance', 'return {}')}",
        "A plugin declares a wrong interface.",
        "prunekit_interface = '>=1'",
        "prunekit_interface must be a positive whole number, and is '>=1'",
    ),
    "is-a-text": Row(
        "TEXT = 'a plugin'\n",
        "A plugin implements no hook.",
        "entry point",
        "'a plugin' has no marked function",
        hint="marked with prunekit.plugin.hookimpl",
        loads="{module}:TEXT",
    ),
    "is-nothing": Row(
        "NOTHING = None\n",
        "A plugin implements no hook.",
        "entry point",
        "None has no marked function",
        loads="{module}:NOTHING",
    ),
    "registers-nothing": Row(
        "def importance():\n    return {}\n",
        "A plugin implements no hook.",
        "import torch",
        "the module {module} has no marked function",
        hint="marked with prunekit.plugin.hookimpl",
    ),
    "forgot-the-mark": Row(
        "def prunekit_importance():\n    return {'mine': dict}\n",
        "A plugin has a hook that isn't marked.",
        "def prunekit_importance",
        "prunekit_importance has the name of a hook, and no mark",
        hint="mark it with prunekit.plugin.hookimpl",
    ),
    "forgot-one-mark": Row(
        f"def prunekit_budgets():\n    return {{}}\n{HEALTHY}".replace("healthy", "mine"),
        "A plugin has a hook that isn't marked.",
        "def prunekit_budgets",
        "prunekit_budgets has the name of a hook, and no mark",
    ),
    "misspells-one-and-forgot-its-mark": Row(
        f"def prunekit_importence():\n    return {{}}\n{hook('prunekit_schedules', 'return {}')}",
        "A plugin has a hook that isn't marked.",
        "def prunekit_importence",
        "prunekit_importence has almost the name of a hook, prunekit_importance, and no mark",
        hint="call it prunekit_importance and mark it with prunekit.plugin.hookimpl",
    ),
    "is-an-object-that-forgot-a-mark": Row(
        f"class Mine:\n    {HOOK}    def prunekit_schedules(self):\n        return {{}}\n"
        "    def prunekit_budget(self):\n        return {}\nmine = Mine()\n",
        "A plugin has a hook that isn't marked.",
        "def prunekit_budget",
        "prunekit_budget has almost the name of a hook, prunekit_budgets, and no mark",
        loads="{module}:mine",
    ),
    "misspells-a-hook": Row(
        hook("prunekit_layertypes", "return {}"),
        "A plugin implements a hook that doesn't exist.",
        "@plugin.hookimpl",
        "there is no hook prunekit_layertypes",
        hint="did you mean 'prunekit_layer_types'",
    ),
    "takes-arguments": Row(
        f"{HOOK}def prunekit_importance(registry):\n    return {{}}\n",
        "A plugin can't be registered.",
        "@plugin.hookimpl",
        "prunekit_importance takes registry, and hooks take no arguments",
    ),
    "is-a-class-and-no-object": Row(
        f"class Mine:\n    {HOOK}    def prunekit_importance(self):\n        return {{}}\n",
        "A plugin's prunekit_importance raised.",
        "@plugin.hookimpl",
        "missing 1 required positional argument: 'self'",
        loads="{module}:Mine",
    ),
    "raises-when-asked": Row(
        "class Slot:\n    def __getattr__(self, name):\n        raise RuntimeError(name)\nslot = Slot()\n",
        "A plugin can't be registered.",
        "entry point",
        "RuntimeError: ",
        loads="{module}:slot",
        cause="raise RuntimeError",
    ),
    "raises": Row(
        hook("prunekit_budgets", "return {'mine': 1 / 0}"),
        "A plugin's prunekit_budgets raised.",
        "@plugin.hookimpl",
        "ZeroDivisionError: division by zero ({line})",
        cause="1 / 0",
    ),
    "exits": Row(
        hook("prunekit_commands", "raise SystemExit(3)"),
        "A plugin's prunekit_commands raised.",
        "@plugin.hookimpl",
        "SystemExit: 3 ({line})",
        cause="SystemExit",
    ),
    "returns-a-list": Row(
        hook("prunekit_schedules", "return ['mine']"),
        "A plugin's prunekit_schedules returned no mapping.",
        "@plugin.hookimpl",
        "it returned list",
    ),
    "returns-nothing": Row(
        hook("prunekit_schedules", "pass"),
        "A plugin's prunekit_schedules returned no mapping.",
        "@plugin.hookimpl",
        "it returned NoneType",
    ),
    "wraps": Row(
        "@plugin.hookimpl(wrapper=True)\ndef prunekit_pruners():\n    return (yield)\n",
        "A plugin's prunekit_pruners returned no mapping.",
        "@plugin.hookimpl",
        "it returned generator",
    ),
    "names-no-namespace": Row(
        hook("prunekit_op_rules", "return {'relu': lambda call: None}"),
        "A plugin's prunekit_op_rules returned a wrong key.",
        "@plugin.hookimpl",
        "it must be a qualified name such as \"aten::add\", or a torch.Tag, and is 'relu'",
    ),
    "has-a-text-for-a-layer-type": Row(
        hook("prunekit_layer_types", "return {nn.Linear: 'linear'}"),
        "A plugin's prunekit_layer_types returned a wrong value.",
        "@plugin.hookimpl",
        "it must be a LayerType, and is 'linear' for <class 'torch.nn.modules.linear.Linear'>",
    ),
    "cannot-even-be-written": Row(
        "class Shy:\n    def __repr__(self):\n        raise ValueError('no')\n"
        + hook("prunekit_importance", "return {'mine': Shy()}"),
        "A plugin's prunekit_importance raised.",
        "@plugin.hookimpl",
        "ValueError: no ({line})",
        cause="raise ValueError",
    ),
    "replaces-no-class": Row(
        hook("prunekit_replacements", "return {'mine': plugin.Replacement('mine', 'Linear', None)}"),
        "A plugin's prunekit_replacements returned a wrong value.",
        "@plugin.hookimpl",
        "it must be a Replacement of a module class by what a function makes of a module",
    ),
    "has-two-names": Row(
        hook("prunekit_replacements", "return {'a': plugin.Replacement('b', nn.Linear, lambda m: None)}"),
        "A plugin's prunekit_replacements returned a wrong key.",
        "@plugin.hookimpl",
        "'a' names a Replacement 'b'",
    ),
    "has-a-layer-twice": Row(
        hook(
            "prunekit_layer_types",
            "return {nn.Tanh: plugin.LayerType('a'), 'torch.nn.modules.activation.Tanh': plugin.LayerType('b')}",
        ),
        "A plugin's prunekit_layer_types returned a wrong key.",
        "@plugin.hookimpl",
        "it has 'torch.nn.modules.activation.Tanh' twice",
        hint="leave one out",
    ),
    "refuses-its-own-defaults": Row(
        settings("raise ValueError('never')"),
        "A plugin's settings refuse their own defaults.",
        "@dataclass",
        "'mine': ValueError: never ({line})",
        hint="every default must be a value that the class takes",
        cause="never",
    ),
    "fails-on-its-own-defaults": Row(
        settings("1 / 0"),
        "A plugin's settings refuse their own defaults.",
        "@dataclass",
        "'mine': ZeroDivisionError: division by zero ({line})",
        cause="1 / 0",
    ),
    "exits-on-its-own-defaults": Row(
        settings("raise SystemExit(3)"),
        "A plugin's settings refuse their own defaults.",
        "@dataclass",
        "'mine': SystemExit: 3 ({line})",
        cause="SystemExit",
    ),
    "is-half-right": Row(
        hook("prunekit_importance", "return {'mine': dict, 'other': 3}")
        + hook("prunekit_budgets", "return {'n': len}"),
        "A plugin's prunekit_importance returned a wrong value.",
        "@plugin.hookimpl",
        "it must be something that can be called, and is 3 for 'other'",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_plugin_that_is_wrong_is_named_and_the_rest_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[name]
    broken = install(tmp_path, monkeypatch, name, row.source, head=row.head, loads=row.loads)
    install(tmp_path, monkeypatch, "neighbour", HEALTHY)
    registry = pk.Registry()
    states = {p.name: p for p in registry.plugins()}
    assert [p.name for p in states.values() if p.error] == [broken.name]
    told(row, broken, states[broken.name].problem())
    works_without(broken.name, registry)
    with pytest.raises(pk.PluginError) as caught:
        pk.Registry(strict=True)
    told(row, broken, caught.value)
    listed(registry, broken, states[broken.name], capsys)
    monkeypatch.setenv("PRUNEKIT_BLOCK", broken.name)  # as the hint says
    assert pk.Registry(strict=True).broken() == []


def told(row: Row, broken: Installed, error: pk.PluginError) -> None:
    assert error.headline == row.headline
    assert error.where == f"{broken.title} ({broken.line_of(row.place)})"
    line = broken.line_of(row.cause) if row.cause else ""
    assert row.why.format(line=line, module=broken.module) in error.why
    assert line.rpartition(":")[0] in error.why
    assert row.hint in error.hint
    assert f"PRUNEKIT_BLOCK={broken.name}" in error.hint


def works_without(name: str, registry: pk.Registry) -> None:
    """Checks that nothing of a plugin is used, and that everything else is."""
    owners = {entry.owner.name for hook in plugin.HOOKS for entry in registry.entries(hook).values()}
    assert name not in owners
    assert "neighbour:point" in owners
    result = pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry)
    assert result.report.pruned == {"layers.0": (8, 4)}
    assert [note for note in result.report.notes if name in note] == registry.broken()


def listed(registry: pk.Registry, broken: Installed, found: plugin.Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks what ``prunekit plugins`` says of a broken plugin."""
    assert run(["plugins"]) == 0
    text = capsys.readouterr().out
    assert next(line for line in text.splitlines() if line.split()[:1] == [broken.name]).endswith("broken")
    assert f"broken, so nothing of it is used: {found.problem()}" in text
    assert run(["plugins", "--json"]) == 0
    states = {p["name"]: (p["state"], p["error"]) for p in json.loads(capsys.readouterr().out)["plugins"]}
    assert states[broken.name] == ("broken", found.error)
    assert states["neighbour:point"] == ("loaded", None)
    assert all(part in found.error for part in (broken.title, *str(found.problem()).splitlines()[0].split()))


def test_functions_with_names_that_are_near_to_no_hook_are_the_plugins_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("prunekit_import", "prunekit_version", "importance", "prunekit_", "prunekit_layers")
    own = "".join(f"def {name}():\n    return 3\n" for name in names)
    healthy = install(tmp_path, monkeypatch, "healthy", HEALTHY + own)
    assert healthy.name in {
        entry.owner.name for entry in pk.Registry(strict=True).entries("prunekit_importance").values()
    }

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.commands.plugins import show
from prunekit_plugins.cli.output import Output
from tests.cli.conftest import Cli


class OwnMagnitude:
    @staticmethod
    @plugin.hookimpl
    def prunekit_importance() -> Mapping[str, Callable[..., Any]]:
        return {"magnitude": dict, "own": dict}


def test_plugins_lists_what_is_registered_and_from_where(cli: Cli) -> None:
    data = cli("plugins", "--json").data
    version = metadata.version("prunekit")
    assert {"name": "magnitude", "plugin": "prunekit:importance", "distribution": "prunekit", "version": version} | {
        "overrides": []
    } in data["hooks"]["prunekit_importance"]
    commands = [entry["name"] for entry in data["hooks"]["prunekit_commands"]]
    assert {"prune", "inspect", "demo", "plugins"} <= set(commands)
    assert {plugin["state"] for plugin in data["plugins"]} == {"loaded"}
    registry = pk.default_registry()
    assert {hook: len(entries) for hook, entries in data["hooks"].items()} == {
        hook: len(registry.entries(hook)) for hook in plugin.HOOKS
    }


def test_plugins_shows_what_is_blocked(cli: Cli) -> None:
    called = cli("plugins", "--block", "importance", "--json")
    states = {plugin["name"]: plugin["state"] for plugin in called.data["plugins"]}
    assert states["prunekit:importance"] == "blocked"
    assert states["prunekit:ops"] == "loaded"
    assert called.data["hooks"]["prunekit_importance"] == []
    text = cli("plugins", "--block", "importance").out
    assert next(line for line in text.splitlines() if "prunekit:importance" in line).endswith("blocked by an argument")


def test_plugins_shows_who_blocks_and_what_isnt_there(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prunekit.toml").write_text('block = ["schedules", "strangr"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEKIT_BLOCK", "prunekit:replacements, gone")
    data = cli("plugins", "--block", "importance", "--json").data
    assert {p["name"]: p["blocked_by"] for p in data["plugins"] if p["state"] == "blocked"} == {
        "prunekit:importance": "an argument",
        "prunekit:replacements": "PRUNEKIT_BLOCK",
        "prunekit:schedules": "prunekit.toml",
    }
    assert data["unused_blocks"] == {"strangr": "prunekit.toml", "gone": "PRUNEKIT_BLOCK"}
    assert data["config"] == str(tmp_path / "prunekit.toml")
    assert "prunekit.toml blocks strangr, which isn't installed" in cli("plugins").out


def test_plugins_shows_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    registry = pk.Registry(extra={"own": OwnMagnitude})
    show(registry, Output())
    text = capsys.readouterr().out
    overridden = text[text.index("overridden") :].splitlines()[2].split()
    assert overridden == ["prunekit_importance", "magnitude", "own", "prunekit:importance"]
    show(registry, Output(as_json=True))
    data = json.loads(capsys.readouterr().out)
    entries = {entry["name"]: entry for entry in data["hooks"]["prunekit_importance"]}
    assert entries["magnitude"]["overrides"] == ["prunekit:importance"]
    assert entries["own"]["overrides"] == []


def test_long_lists_are_cut_unless_everything_is_wanted(cli: Cli) -> None:
    rules = next(line for line in cli("plugins").out.splitlines() if "prunekit_op_rules" in line)
    assert "more (--all)" in rules
    assert "aten::linear" in cli("plugins", "--all").out


def test_opaque_layers_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    opaque = plugin.LayerType("tanh", opaque=plugin.Opaque(lambda call: list(call["input"].axes)))

    class Own:
        @staticmethod
        @plugin.hookimpl
        def prunekit_layer_types() -> Mapping[type[nn.Module], plugin.LayerType]:
            return {nn.Tanh: opaque, nn.Sigmoid: plugin.LayerType("sigmoid")}

    registry = pk.Registry(extra={"own": Own})
    show(registry, Output())
    assert "activation.Tanh (opaque), torch.nn.modules.activation.Sigmoid\n" in capsys.readouterr().out
    show(registry, Output(as_json=True))
    entries = {e["name"]: e for e in json.loads(capsys.readouterr().out)["hooks"]["prunekit_layer_types"]}
    assert entries["torch.nn.modules.activation.Tanh"]["opaque"] is True
    assert "opaque" not in entries["torch.nn.modules.activation.Sigmoid"]

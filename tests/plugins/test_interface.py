"""How plugins and prunekit grow apart and stay together: versions of the interface, optional and deprecated hooks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit_core.plugins import hookspecs
from prunekit_plugins.cli.app import run
from tests.models import Chain
from tests.plugins.installing import Installed, install

IMPORTANCE = "@plugin.hookimpl\ndef prunekit_importance():\n    return {'mine': dict}\n"
MARK = "@plugin.hookimpl"

Put = Callable[[str, str], Installed]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    return lambda name, source: install(tmp_path, monkeypatch, name, source)


def states() -> dict[str, str]:
    return {p.name: p.blocked_by or ("broken" if p.error else "loaded") for p in pk.Registry().plugins()}


def test_a_plugin_for_this_version_of_the_interface_is_loaded(put: Put) -> None:
    put("mine", f"prunekit_interface = {plugin.INTERFACE}\n{IMPORTANCE}")
    assert "mine" in pk.Registry(strict=True).entries("prunekit_importance")


def test_hooks_of_a_plugin_for_a_newer_interface_are_not_even_called(put: Put) -> None:
    put(
        "mine",
        f"prunekit_interface = {plugin.INTERFACE + 1}\n{IMPORTANCE}".replace(
            "return", "raise RuntimeError\n    return"
        ),
    )
    (broken,) = (p for p in pk.Registry().plugins() if p.error)
    assert broken.problem().headline == "A plugin needs a newer prunekit."


def test_an_optional_hook_of_a_newer_prunekit_is_ignored_with_a_note(
    put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = "@plugin.hookimpl(optionalhook=True)\ndef prunekit_telepathy():\n    raise RuntimeError\n"
    mine = put("mine", newer + IMPORTANCE)
    registry = pk.Registry(strict=True)
    assert "mine" in registry.entries("prunekit_importance")
    note = (
        "mine:point 1.2: prunekit_telepathy is a hook of another prunekit, marked optional: not used "
        f"({mine.line_of('@plugin.hookimpl(opt')})"
    )
    assert registry.notes() == [note]
    assert run(["plugins"]) == 0
    assert f"note: {note}" in capsys.readouterr().out


def test_a_plugin_whose_only_hook_is_optional_and_unknown_is_no_error(put: Put) -> None:
    put("mine", "@plugin.hookimpl(optionalhook=True)\ndef prunekit_telepathy():\n    return {}\n")
    assert pk.Registry().broken() == []


def test_a_deprecated_hook_still_works_and_warns_with_the_name_of_the_plugin(
    put: Put, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = put("mine", IMPORTANCE)
    monkeypatch.setitem(hookspecs.DEPRECATED, "prunekit_importance", "use prunekit_criteria; it goes in 0.4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = pk.Registry(block=["prunekit"])
    assert "mine" in registry.entries("prunekit_importance")
    (warning,) = caught
    assert warning.category is DeprecationWarning
    assert str(warning.message) == (
        "mine:point 1.2 implements prunekit_importance, which is deprecated: use prunekit_criteria; it goes in 0.4"
    )
    assert f"{warning.filename}:{warning.lineno}" == mine.line_of(MARK)
    (note,) = (note for note in registry.notes() if "mine:point" in note)
    assert note == (
        "mine:point 1.2: prunekit_importance is deprecated: use prunekit_criteria; it goes in 0.4 "
        f"({mine.line_of(MARK)})"
    )


def test_who_takes_deprecations_for_errors_gets_one(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("mine", IMPORTANCE)
    monkeypatch.setitem(hookspecs.DEPRECATED, "prunekit_importance", "it goes in 0.4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match=r"mine:point 1\.2 implements prunekit_importance"):
            pk.Registry(block=["prunekit"])


@pytest.mark.parametrize("value", ["1", "yes"])
def test_third_parties_can_be_switched_off(
    value: str, put: Put, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("mine", IMPORTANCE)
    put("torn", "import nosuchpackage\n")
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", value)
    registry = pk.Registry(strict=True)
    assert {p.name: p.blocked_by for p in registry.plugins() if p.blocked} == {
        "mine:point": "PRUNEKIT_NO_PLUGINS",
        "torn:point": "PRUNEKIT_NO_PLUGINS",
    }
    assert pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry).report.pruned == {"layers.0": (8, 4)}
    with pytest.raises(pk.ArgumentError, match="mine:point is blocked by PRUNEKIT_NO_PLUGINS"):
        registry.named("prunekit_importance", "mine")
    assert run(["plugins"]) == 0
    assert "blocked by PRUNEKIT_NO_PLUGINS" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["", "0"])
def test_and_switched_on(value: str, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("mine", IMPORTANCE)
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", value)
    assert states()["mine:point"] == "loaded"


def test_a_plugin_that_is_blocked_or_switched_off_is_not_imported(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = put("mine", IMPORTANCE)
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", "1")
    assert states()["mine:point"] == "PRUNEKIT_NO_PLUGINS"
    monkeypatch.delenv("PRUNEKIT_NO_PLUGINS")
    monkeypatch.setenv("PRUNEKIT_BLOCK", "mine")
    assert states()["mine:point"] == "PRUNEKIT_BLOCK"
    assert mine.module not in sys.modules


@pytest.mark.parametrize("typed", ["my-plugin", "My_Plugin", "MY.PLUGIN", "my__plugin:point", "My-Plugin:POINT"])
def test_names_of_distributions_are_compared_as_pep_503_says(
    typed: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("My_Plugin", IMPORTANCE)
    registry = pk.Registry(block=[typed])
    assert {p.name: p.blocked_by for p in registry.plugins() if p.blocked} == {"My_Plugin:point": "an argument"}
    assert registry.unused_blocks() == {}
    monkeypatch.setenv("PRUNEKIT_BLOCK", typed)
    assert states()["My_Plugin:point"] == "PRUNEKIT_BLOCK"


def test_one_plugin_that_is_blocked_twice_is_blocked_by_the_one_who_asked_last(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("My_Plugin", IMPORTANCE)
    monkeypatch.setenv("PRUNEKIT_BLOCK", "my-plugin")
    registry = pk.Registry(block=["My_Plugin"])
    assert [p.blocked_by for p in registry.plugins() if p.blocked] == ["an argument"]
    assert registry.unused_blocks() == {}


def test_the_number_needs_no_torch() -> None:
    program = "import sys; from prunekit.plugin import INTERFACE, hookimpl; print(INTERFACE, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(plugin.INTERFACE), "False"]

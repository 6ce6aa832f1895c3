"""A whole plugin through the kit: what passes, what fails, what can't be checked; in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import Outcome, check_layer_type, check_plugin
from prunekit_plugins.cli.app import run
from tests.plugins.installing import install

PASSED, FAILED, LEFT = Outcome.PASSED, Outcome.FAILED, Outcome.LEFT


def quadratic(ratio: float, steps: int) -> list[float]:
    return [ratio * (step / steps) ** 2 for step in range(steps + 1)]


class Good:
    @staticmethod
    @plugin.hookimpl
    def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:
        return {"quadratic": quadratic}


class Half:
    """One thing that is right, one that is wrong, and three that can't be looked at."""

    @staticmethod
    @plugin.hookimpl
    def prunekit_schedules() -> Mapping[str, Callable[[float, int], list[float]]]:
        return {"quadratic": quadratic, "falling": lambda ratio, steps: [ratio] * (steps + 1)}

    @staticmethod
    @plugin.hookimpl
    def prunekit_importance() -> Mapping[str, Callable[..., Any]]:
        return {"silent": lambda: lambda group: None, "unprepared": lambda: refuses}

    @staticmethod
    @plugin.hookimpl
    def prunekit_layer_types() -> Mapping[type[nn.Module], plugin.LayerType]:
        return {Doubled: plugin.LayerType("doubled")}


class Doubled(nn.Linear):
    pass


def refuses(group: pk.Group) -> torch.Tensor:
    raise pk.ArgumentError("There are no gradients.", hint="call backward first")


class Declared(Half):
    """The same with checks of its own, one of which is about nothing."""

    @staticmethod
    @plugin.hookimpl
    def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
        return {
            ("prunekit_layer_types", Doubled): lambda registry: (
                check_layer_type(Doubled(4, 6), torch.randn(3, 4), registry=registry) and None
            ),
            ("prunekit_importance", "silent"): lambda registry: None,
            ("prunekit_importance", "unprepared"): lambda registry: {}["no"],
            ("prunekit_importance", "unknown"): lambda registry: None,
        }


def outcomes(of: object, name: str = "own") -> dict[str, Outcome]:
    from prunekit_plugins.testing.plugin_check import examine

    return {checked.name: checked.outcome for checked in examine(name, pk.Registry(extra={"own": of}))}


LAYER = f"{__name__}.Doubled"


def test_a_right_plugin_passes() -> None:
    (checked,) = check_plugin("own", registry=pk.Registry(extra={"own": Good}))
    assert (checked.plugin, checked.hook, checked.name) == ("own", "prunekit_schedules", "quadratic")
    assert (checked.outcome, checked.why) == (PASSED, "")


def test_each_thing_has_its_outcome() -> None:
    assert outcomes(Half) == {
        LAYER: LEFT,
        "silent": LEFT,
        "unprepared": LEFT,
        "quadratic": PASSED,
        "falling": FAILED,
    }


def test_what_a_plugin_declares_takes_the_place_of_the_usual_check() -> None:
    assert outcomes(Declared) == {
        LAYER: PASSED,
        "silent": PASSED,
        "unprepared": FAILED,
        "quadratic": PASSED,
        "falling": FAILED,
        "prunekit_importance unknown": FAILED,
    }


def test_all_failures_are_listed() -> None:
    with pytest.raises(AssertionError) as caught:
        check_plugin("own", registry=pk.Registry(extra={"own": Declared}))
    first, second, third = str(caught.value).splitlines()
    where = r"prunekit_importance unprepared: the check that the plugin declares raises KeyError: 'no' "
    assert first.startswith(where)
    assert first.endswith(")")
    assert f"{__file__}:" in first
    assert second.startswith(f"prunekit_schedules falling: schedule(0.1, 1) starts at 0.1, not at 0 ({__file__}:")
    assert third == "prunekit_checks prunekit_importance unknown: nothing is registered there"


def test_a_plugin_that_there_is_not() -> None:
    with pytest.raises(pk.ArgumentError, match=r"There is no plugin 'ownn'.\n(?s:.*)own"):
        check_plugin("ownn", registry=pk.Registry(extra={"own": Good}))


@pytest.mark.parametrize("name", ["prunekit:schedules", "Schedules", "PRUNEKIT:schedules"])
def test_plugins_are_found_by_any_of_their_names(name: str) -> None:
    found = check_plugin(name)
    assert {checked.plugin for checked in found} == {"prunekit:schedules"}
    assert {checked.outcome for checked in found} == {PASSED}


def test_a_blocked_plugin_is_not_checked() -> None:
    (checked,) = check_plugin("schedules", registry=pk.Registry(block=["schedules"]))
    assert (checked.outcome, checked.why) == (LEFT, "it is blocked by an argument")


@pytest.mark.slow
def test_what_is_built_in_passes() -> None:
    found = check_plugin("prunekit")
    left = {checked.hook for checked in found if checked.outcome is LEFT}
    assert left == {"prunekit_op_rules", "prunekit_layer_types", "prunekit_serving_profiles"}
    engines = {
        checked.name for checked in found if checked.hook == "prunekit_serving_profiles" and checked.outcome is LEFT
    }
    of_transformers = {"gguf", "mlx", "sglang", "tensorrt-llm", "transformers", "vllm"}
    assert engines == of_transformers  # tried on a model of transformers in test_kit.py


def test_the_command_line_says_what_passed_and_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pk.Registry(extra={"own": Half})
    found = "prunekit_plugins.cli.commands.plugins.registry_and_fault"
    monkeypatch.setattr(found, lambda block, config, plugins: (registry, None))
    for arguments in (["plugins", "own", "--check"], ["plugins", "--check"]):
        assert run(arguments, registry) == 1
        printed = capsys.readouterr()
        assert printed.out.splitlines()[0] == "checks: 1 passed, 1 failed, 3 not checked"
        assert "failed: prunekit_schedules falling: schedule(0.1, 1) starts at 0.1, not at 0 (" in printed.out
        assert "not checked: prunekit_importance unprepared: There are no gradients." in printed.out
        assert printed.err == "1 of 5 checks failed.\n  where: own falling\n"


def test_the_command_line_ends_well_where_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "schedules", "--check", "--json"], pk.default_registry()) == 0
    printed = capsys.readouterr().out
    assert '"outcome": "passed"' in printed
    assert "failed" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugins", "schedules"], "A NAME goes with --check."),
        (["plugins", "nosuch", "--check"], "There is no plugin 'nosuch'."),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments, pk.default_registry()) == 2
    assert message in capsys.readouterr().err


def test_a_key_that_another_plugin_claims_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "@plugin.hookimpl\ndef prunekit_schedules():\n    return {'mine': lambda ratio, steps: [0.0, ratio]}\n"
    checks = "@plugin.hookimpl\ndef prunekit_checks():\n    return {('prunekit_schedules', 'mine'): print}\n"
    first = install(tmp_path, monkeypatch, "first", source + checks)
    second = install(tmp_path, monkeypatch, "second", source)
    registry = pk.Registry()
    for found in (first, second):
        with pytest.raises(AssertionError, match="Two plugins claim the same key 'mine'") as caught:
            check_plugin(found.name, registry=registry)
        assert str(caught.value).count("\n") == 0
        for other in (first, second):
            assert f"{other.title} ({other.line_of('@plugin.hookimpl')})" in str(caught.value)


def test_the_command_line_tells_of_a_contested_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "@plugin.hookimpl\ndef prunekit_importance():\n    return {'mine': dict}\n"
    for name in ("first", "second"):
        install(tmp_path, monkeypatch, name, source)
    assert run(["plugins", "first", "--check", "--json"]) == 1
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert (check["plugin"], check["hook"], check["name"]) == ("first:point", "prunekit_importance", "mine")
    assert check["outcome"] == "failed"
    assert "block one of them, such as PRUNEKIT_BLOCK=second:point" in check["why"]
    assert run(["plugins", "--check"]) == 1
    assert "2 of 2 checks failed" in capsys.readouterr().err

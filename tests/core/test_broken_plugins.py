"""Plugins that are wrong on purpose, installed as distributions: what is said about each, and that the rest works."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_criterion, check_layer_type, check_rule, sample
from tests.models import Chain
from tests.plugins.installing import Installed, install as installed

pytest_plugins = ["prunekit.testing.pytest_plugin", "pytester"]

RAISES_ON_IMPORT = "nn.NoSuchLayer\n"
WRONG_TYPE = """
@plugin.hookimpl
def prunekit_layer_types():
    return {nn.Linear: "linear"}
"""
CLAIMED_TWICE = """
@plugin.hookimpl
def prunekit_importance():
    return {"mine": dict}
"""
MISSPELT = """
@plugin.hookimpl
def prunekit_layertypes():
    return {}
"""
CONTRADICTS_ITS_SHAPES = """
def relu(call):
    return [plugin.Axis(2) for axis in call["self"].axes]


@plugin.hookimpl
def prunekit_op_rules():
    return {"aten::relu": relu}
"""
OPAQUE = """
def tanh(call):
    return [plugin.Axis(3) for axis in call["input"].axes]


@plugin.hookimpl
def prunekit_layer_types():
    return {nn.Tanh: plugin.LayerType("tanh", opaque=plugin.Opaque(tanh, fake=lambda module, x: torch.empty_like(x)))}
"""

Install = Callable[[str, str], Installed]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one plugin where Python finds it."""
    return functools.partial(installed, tmp_path, monkeypatch)


def test_a_plugin_that_raises_on_import(install: Install, prunekit_registry: Callable[..., pk.Registry]) -> None:
    found = install("raising", RAISES_ON_IMPORT)
    said = f"AttributeError: module 'torch.nn' has no attribute 'NoSuchLayer' ({found.line_of('NoSuchLayer')})"
    registry = pk.Registry()
    (broken,) = (plugin for plugin in registry.plugins() if plugin.error)
    assert (broken.name, broken.version) == ("raising:point", "1.2")
    assert broken.error == (
        f"A plugin can't be loaded. {said} [raising:point 1.2 ({found.line_of('entry point')})] "
        "correct it, or leave the plugin out: PRUNEKIT_BLOCK=raising:point"
    )
    assert pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=registry).report.pruned == {"layers.0": (8, 4)}
    with pytest.raises(pk.PluginError) as caught:
        prunekit_registry("raising")
    assert caught.value.why == said
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_plugin_that_returns_the_wrong_type(install: Install, prunekit_registry: Callable[..., pk.Registry]) -> None:
    found = install("wrong", WRONG_TYPE)
    with pytest.raises(pk.PluginError) as caught:
        prunekit_registry("wrong")
    assert str(caught.value) == (
        "A plugin's prunekit_layer_types returned a wrong value.\n"
        f"  where: wrong:point 1.2 ({found.line_of('@plugin.hookimpl')})\n"
        "  why: it must be a LayerType, and is 'linear' for <class 'torch.nn.modules.linear.Linear'>\n"
        "  what to do: correct it, or leave the plugin out: PRUNEKIT_BLOCK=wrong:point"
    )


def test_an_opaque_layer_that_contradicts_its_shapes(
    install: Install, prunekit_registry: Callable[..., pk.Registry]
) -> None:
    found = install("opaquely", OPAQUE)
    registry = prunekit_registry("opaquely")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2))
    result = pk.prune(model, torch.randn(1, 4), registry=registry)
    (line,) = result.report.not_understood
    assert line.endswith(
        "in 1: its rule gives the sizes (3, 3) to an output of shape (1, 8) "
        f"(rule of opaquely:point in {found.line_of('def tanh')}; without it: PRUNEKIT_BLOCK=opaquely:point)"
    )
    assert result.report.pruned == {"2": (6, 3)}


def test_what_the_hint_says_helps(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("wrong", WRONG_TYPE)
    monkeypatch.setenv("PRUNEKIT_BLOCK", "wrong:point")
    assert pk.prune(Chain(4, 8, 3), torch.randn(1, 4), registry=pk.Registry()).report.pruned == {"layers.0": (8, 4)}


def test_a_key_that_is_claimed_twice(install: Install, prunekit_registry: Callable[..., pk.Registry]) -> None:
    both = [install(name, CLAIMED_TWICE) for name in ("one", "two")]
    with pytest.raises(pk.PluginError) as caught:
        prunekit_registry("one", "two")
    sites = [one.line_of("@plugin.hookimpl") for one in both]
    assert caught.value.headline == "Two plugins claim the same key 'mine'."
    assert caught.value.where == f"prunekit_importance: one:point 1.2 ({sites[0]}) and two:point 1.2 ({sites[1]})"
    assert "mine" in prunekit_registry("two").entries("prunekit_importance")


def test_a_misspelt_hook(install: Install, prunekit_registry: Callable[..., pk.Registry]) -> None:
    found = install("misspelt", MISSPELT)
    with pytest.raises(pk.PluginError) as caught:
        prunekit_registry("misspelt")
    assert caught.value.headline == "A plugin implements a hook that doesn't exist."
    assert caught.value.where == f"misspelt:point 1.2 ({found.line_of('@plugin.hookimpl')})"
    assert caught.value.why == "there is no hook prunekit_layertypes"
    assert caught.value.hint.startswith("did you mean 'prunekit_layer_types'")


def test_a_rule_that_contradicts_its_shapes(install: Install, prunekit_registry: Callable[..., pk.Registry]) -> None:
    found = install("contradicting", CONTRADICTS_ITS_SHAPES)
    registry = prunekit_registry("contradicting")
    with pytest.raises(AssertionError) as caught:
        check_rule(torch.relu, [sample(3, 4)], registry=registry)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("aten::relu: its rule gives the sizes (2, 2) to an output of shape (3, 4)")
    assert lines[-1] == f"  aten::relu: rule of contradicting:point in {found.line_of('def relu')}"
    report = pk.DependencyGraph(registry).build_dependency(Chain(4, 8, 3), torch.randn(1, 4)).report()
    assert report.not_understood == (
        (
            "aten::relu in the model: its rule gives the sizes (2, 2) to an output of shape (1, 8) "
            f"(rule of contradicting:point in {found.line_of('def relu')}; "
            "without it: PRUNEKIT_BLOCK=contradicting:point)"
        ),
    )


def test_the_registry_of_the_fixture_holds_nothing_else(
    install: Install, prunekit_registry: Callable[..., pk.Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one", CLAIMED_TWICE)
    install("raising", RAISES_ON_IMPORT)
    assert "mine" not in prunekit_registry().entries("prunekit_importance")
    assert {p.distribution for p in prunekit_registry("one").plugins() if not p.blocked} == {"prunekit", "one"}

    class Own:
        @staticmethod
        @plugin.hookimpl
        def prunekit_budgets() -> dict[str, Callable[..., float]]:
            return {"own": lambda analysis, kept: 1.0}

    registry = prunekit_registry(Own, block=["schedules"])
    assert registry.entries("prunekit_budgets")["own"].owner.name == "Own#0"
    assert not registry.entries("prunekit_schedules")
    with pytest.raises(AssertionError, match="no entry points of group 'prunekit' are installed by nosuch"):
        prunekit_registry("nosuch")


def test_the_fixture_comes_without_an_entry_point_and_ignores_the_environment(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["prunekit.testing.pytest_plugin"]')
    pytester.makepyfile(
        """
        import os

        def test_isolated(prunekit_registry):
            assert os.environ.get("PRUNEKIT_BLOCK") is None
            assert prunekit_registry().entries("prunekit_schedules")
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_BLOCK", "schedules")
        pytester.runpytest_inprocess("-p", "no:xdist", "-o", "addopts=").assert_outcomes(passed=1)


def test_layers_and_criteria_that_are_wrong_are_named(prunekit_registry: Callable[..., pk.Registry]) -> None:
    kind = plugin.LayerType("lying", attributes=lambda module, resizing: {"in_features": 1})

    class Lying:
        @staticmethod
        @plugin.hookimpl
        def prunekit_layer_types() -> dict[type[torch.nn.Module], plugin.LayerType]:
            return {torch.nn.Linear: kind}

    with pytest.raises(AssertionError, match=r"lying\.in_features is 4, its parameters say 1"):
        check_layer_type(torch.nn.Linear(4, 3), torch.randn(2, 4), registry=prunekit_registry(Lying))
    with pytest.raises(AssertionError, match="6 units, scores"):
        check_criterion(lambda: lambda group: torch.ones(group.size() + 1), registry=prunekit_registry())


def test_a_plugin_that_is_broken_is_in_every_report(install: Install) -> None:
    install("raising", RAISES_ON_IMPORT)
    registry = pk.Registry()
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    graph = pk.DependencyGraph(registry).build_dependency(model, x)
    for notes in (graph.report().notes, pk.prune(model, x, registry=registry).report.notes):
        (note,) = (note for note in notes if "broken" in note)
        assert note.startswith(
            "the plugin raising:point is broken, and nothing of it is used: A plugin can't be loaded. AttributeError"
        )
    with pytest.raises(pk.NothingToPruneError, match="the plugin raising:point is broken"):
        pk.prune(nn.Sequential(nn.Linear(4, 8)), x, registry=registry)

"""Settings of single plugins: declared by a hook, set in a table of their own, and handed to what is registered."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.schedules import OneCycle, one_cycle_scheduler
from tests.models import Chain

EXAMPLE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@attrs.frozen
class Options:
    """Settings of all types."""

    volts: float = 5.0
    device: str = "nano"
    rounds: int = 3
    dry: bool = False
    mode: Literal["slow", "fast"] = "slow"
    names: tuple[str, ...] = ()
    prices: dict[str, float] = attrs.field(factory=dict)
    limit: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.volts <= 0:
            raise ValueError("volts must be above 0")


@dataclasses.dataclass(frozen=True)
class Level:
    """Settings as a dataclass."""

    level: int = 1


def registry(folder: Path, text: str = "", **hooks: Any) -> pk.Registry:
    path = folder / "prunekit.toml"
    path.write_text(text)
    hooks = {"prunekit_settings": {"joules": Options}, **hooks}
    made = {f"hook{place}": _hook(name, entries) for place, (name, entries) in enumerate(hooks.items())}
    return pk.Registry.from_config(path, extra={"own": SimpleNamespace(**made)})


def _hook(name: str, entries: Any) -> Any:
    return plugin.hookimpl(lambda: entries, specname=name)


def test_without_a_table_the_defaults_hold(tmp_path: Path) -> None:
    assert registry(tmp_path).settings("joules") == Options()


def test_a_table_sets_values_of_all_types(tmp_path: Path) -> None:
    text = """
[plugin.joules]
volts = 12
device = "x"
rounds = 4
dry = true
mode = "fast"
names = ["a", "b"]
prices = { a = 1, b = 2.5 }
limit = 7
"""
    expected = Options(12, "x", 4, True, "fast", ("a", "b"), {"a": 1, "b": 2.5}, 7)
    assert registry(tmp_path, text).settings("joules") == expected
    (tmp_path / "pyproject.toml").write_text("[tool.prunekit.plugin.joules]\nvolts = 3.3\n")
    extra = {"own": SimpleNamespace(hook=_hook("prunekit_settings", {"joules": Options}))}
    assert pk.Registry.from_config(tmp_path / "pyproject.toml", extra=extra).settings("joules") == Options(3.3)
    assert registry(tmp_path, "[plugin.lvl]\nlevel = 2\n", prunekit_settings={"lvl": Level}).settings("lvl") == Level(2)


WRONG: list[tuple[str, str]] = [
    ("[plugin.joule]\nvolts = 1.0", r"No plugin has settings called 'joule'\.(?s:.*)did you mean 'joules'"),
    ("[plugin.joules]\nvolt = 1.0", r"The plugin 'joules' has no setting 'volt'\.(?s:.*)did you mean 'volts'"),
    ("[plugin.joules]\nvolts = '5'", r"setting 'volts' of the plugin 'joules' must be a number\.(?s:.*)got '5'"),
    ("[plugin.joules]\nvolts = true", "'volts' of the plugin 'joules' must be a number"),
    ("[plugin.joules]\nrounds = 1.5", "'rounds' of the plugin 'joules' must be a whole number"),
    ("[plugin.joules]\nrounds = true", "'rounds' of the plugin 'joules' must be a whole number"),
    ("[plugin.joules]\ndry = 1", "'dry' of the plugin 'joules' must be true or false"),
    ("[plugin.joules]\ndevice = 1", "'device' of the plugin 'joules' must be a text"),
    ("[plugin.joules]\nmode = 'medium'", "'mode' of the plugin 'joules' must be of the type .*slow"),
    ("[plugin.joules]\nnames = 'a'", "'names' of the plugin 'joules' must be of the type tuple"),
    ("[plugin.joules]\nnames = [1]", "'names' of the plugin 'joules' must be of the type tuple"),
    ("[plugin.joules]\nprices = { a = 'x' }", "'prices' of the plugin 'joules' must be of the type dict"),
    ("[plugin.joules]\nlimit = 'x'", r"'limit' of the plugin 'joules' must be of the type int \| None"),
    ("[plugin.joules]\nvolts = -1.0", r"The plugin 'joules' refuses its settings\.(?s:.*)volts must be above 0"),
    ("plugin = 3", "'plugin' must be a table with a table for each plugin"),
    ("plugin = { joules = 3 }", "'plugin' must be a table with a table for each plugin"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_tables_are_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=message) as caught:
        registry(tmp_path, text)
    assert caught.value.where == str(tmp_path / "prunekit.toml")


@dataclasses.dataclass
class Touchy:
    """It fails on some values."""

    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds == 0:
            raise SystemExit("no rounds")
        self.share = 1 / (self.rounds - 2)


@pytest.mark.parametrize(("rounds", "why"), [(2, "ZeroDivisionError: "), (0, "SystemExit: no rounds")])
def test_whatever_a_class_raises_for_the_values_of_a_table_is_an_error_of_these_values(
    rounds: int, why: str, tmp_path: Path
) -> None:
    with pytest.raises(pk.ArgumentError, match="The plugin 'touchy' refuses its settings") as caught:
        registry(tmp_path, f"[plugin.touchy]\nrounds = {rounds}\n", prunekit_settings={"touchy": Touchy})
    error = caught.value
    assert error.where == str(tmp_path / "prunekit.toml")
    assert error.why.startswith(f"own: {why}")
    assert f"({__file__}:" in error.why
    line = inspect.getsourcelines(Touchy)[1]
    assert error.hint == f"give [plugin.touchy] values that Touchy takes ({__file__}:{line})"


def test_there_are_settings_of_plugins_that_declare_them_only() -> None:
    with pytest.raises(pk.ArgumentError, match="No setting is registered as 'joules'"):
        pk.default_registry().settings("joules")


@attrs.frozen
class Needed:
    """A field has no default."""

    level: int


@pytest.mark.parametrize("declared", [3, dict, Needed, Options()])
def test_what_is_no_class_of_settings_is_a_defect_of_the_plugin(tmp_path: Path, declared: Any) -> None:
    with pytest.raises(pk.PluginError, match="an attrs class or a dataclass whose fields all have defaults"):
        registry(tmp_path, prunekit_settings={"joules": declared})


def test_the_table_of_a_blocked_plugin_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[plugin.one_cycle]\nalpha = 3.0\n")
    assert pk.Registry.from_config(tmp_path / "p.toml").settings("one_cycle") == OneCycle(3.0)
    blocked = pk.Registry.from_config(tmp_path / "p.toml", block=["schedules"])
    with pytest.raises(pk.ArgumentError, match=r"No setting is registered as 'one_cycle'(?s:.*)schedules is blocked"):
        blocked.settings("one_cycle")


def test_criteria_get_the_settings_of_their_plugin(tmp_path: Path) -> None:
    class Scores:
        def __init__(self, sign: float = 1.0, *, settings: Options) -> None:
            self.factor = sign * settings.volts

        def __call__(self, group: pk.Group) -> torch.Tensor:
            return self.factor * torch.arange(group.size()).float()

    text = 'importance = { name = "watts", sign = -1.0 }\n[plugin.joules]\nvolts = 2.5\n'
    found = registry(tmp_path, text, prunekit_importance={"watts": Scores})
    assert found.options()["importance"].factor == -2.5
    assert found.named("prunekit_importance", "watts")().factor == 2.5
    assert pk.prune(Chain(4, 8, 3), EXAMPLE, **found.options()).plan.cuts[0].kept == (0, 1, 2, 3)
    assert found.entries("prunekit_importance")["watts"].owner.name == "own"


def test_functions_get_the_settings_of_their_plugin(tmp_path: Path) -> None:
    seen: list[Any] = []

    def units(analysis: plugin.Analysis, kept: plugin.Kept, *, settings: Options) -> float:
        seen.append(settings.volts)
        return settings.volts * sum(len(kept.get(name, range(g.size))) for name, g in analysis.groups.items())

    def steps(ratio: float, steps: int, *, settings: Level) -> list[float]:
        return [*[0.0] * settings.level, *[ratio] * (steps + 1 - settings.level)]

    def smallest(problem: plugin.Problem, *, settings: Options) -> list[int]:
        seen.append(settings.device)
        return [len(choice.options) - 1 for choice in problem.choices]

    text = "[plugin.joules]\nvolts = 2.0\ndevice = 'mine'\n[plugin.late]\nlevel = 2\n"
    found = registry(
        *(tmp_path, text),
        prunekit_settings={"joules": Options, "late": Level},
        prunekit_budgets={"units": units},
        prunekit_schedules={"late": steps},
        prunekit_allocators={"smallest": smallest},
    )
    model = Chain(4, 8, 3)
    pk.prune(model, EXAMPLE, target={"units": 6.0}, registry=found)
    assert model.layers[0].out_features == 3
    pk.prune(Chain(4, 8, 3), EXAMPLE, target={"params": 0.9}, allocation="smallest", registry=found)
    assert set(seen) == {2.0, "mine"}
    assert found.named("prunekit_schedules", "late")(0.5, 3) == [0.0, 0.0, 0.5, 0.5]


def test_others_do_not_get_them(tmp_path: Path) -> None:
    def positional(settings: Any) -> Any:
        return settings

    entries = {"positional": positional, "dict": dict, "sum": type(sum)}
    found = registry(tmp_path, prunekit_importance=entries)
    assert {key: found.entries("prunekit_importance")[key].value for key in entries} == entries


def test_a_wrong_function_with_settings_is_told_with_its_line(tmp_path: Path) -> None:
    def wrong(analysis: plugin.Analysis, kept: plugin.Kept, *, settings: Options) -> float:
        raise KeyError("oh")

    found = registry(tmp_path, prunekit_budgets={"wrong": wrong})
    with pytest.raises(pk.PluginError, match="A cost model can't be computed") as caught:
        pk.prune(Chain(4, 8, 3), EXAMPLE, target={"wrong": 0.5}, registry=found)
    line = wrong.__code__.co_firstlineno
    assert f"{__file__}:{line})" in caught.value.where
    assert f"{__file__}:{line + 1})" in caught.value.why


def test_the_form_of_the_one_cycle_schedule_is_set(tmp_path: Path) -> None:
    found = registry(tmp_path, "[plugin.one_cycle]\nalpha = 4\nbeta = 2\n")
    ratios = found.named("prunekit_schedules", "one_cycle")(0.8, 4)
    assert ratios == one_cycle_scheduler(0.8, 4, settings=OneCycle(4.0, 2.0))
    curve = [(1 + torch.e**-2) / (1 + torch.e ** (2 - t)) for t in range(5)]
    assert ratios == pytest.approx([0.8 * (value - curve[0]) / (1 - curve[0]) for value in curve])
    assert pk.default_registry().named("prunekit_schedules", "one_cycle") is one_cycle_scheduler
    with pytest.raises(pk.ArgumentError, match=r"refuses its settings(?s:.*)positive alpha"):
        registry(tmp_path, "[plugin.one_cycle]\nalpha = 0\n")


@pytest.fixture
def stepwise(tmp_path: Path) -> pk.Registry:
    text = """
pruner = { name = "group_norm", reg = 1e-3, alpha = 2.0 }
regularizer = { name = "group_lasso", reg = 1e-2 }
ratio = 0.5
iterative_steps = 4
iterative_pruning_ratio_scheduler = "one_cycle"
ignored_layers = ["layers.1"]
compensation = "bias"
"""
    return registry(tmp_path, text)


def test_settings_make_a_pruner(stepwise: pk.Registry) -> None:
    model = Chain(4, 16, 3)
    pruner = stepwise.pruner(model, EXAMPLE)
    assert type(pruner).__name__ == "GroupNormPruner"
    assert (pruner.regularizer.reg, pruner.regularizer.alpha) == (1e-3, 2.0)
    assert (pruner.pruning_ratio, pruner.iterative_steps) == (0.5, 4)
    assert pruner.registry is stepwise
    assert pruner.settings.ignored_layers == ("layers.1",)
    widths = []
    for _ in range(4):
        pruner.step()
        widths.append(model.layers[0].out_features)
    assert widths == [int(16 * (1 - ratio) + 1e-9) for ratio in one_cycle_scheduler(0.5, 4)[1:]]
    other = stepwise.pruner(Chain(4, 16, 3), EXAMPLE, ratio=0.25, pruner="base", iterative_steps=2, importance="lamp")
    assert (type(other), other.pruning_ratio, other.iterative_steps) == (pk.BasePruner, 0.25, 2)
    assert type(other.importance).__name__ == "LAMPImportance"


def test_prune_gets_none_of_what_is_for_steps(stepwise: pk.Registry) -> None:
    assert stepwise.options() == {
        "registry": stepwise,
        "ratio": 0.5,
        "ignored_layers": ["layers.1"],
        "compensation": "bias",
    }
    pk.prune(Chain(4, 16, 3), EXAMPLE, **stepwise.options())


def test_settings_make_a_regularizer(stepwise: pk.Registry) -> None:
    model = Chain(4, 16, 3)
    graph = pk.DependencyGraph(stepwise).build_dependency(model, EXAMPLE)
    regularizer = stepwise.regularizer(graph.get_all_groups)
    assert (type(regularizer).__name__, regularizer.reg) == ("GroupLassoRegularizer", 1e-2)
    assert stepwise.regularizer(graph.get_all_groups, reg=0.5).reg == 0.5
    with pytest.raises(pk.ArgumentError, match="The regularizer 'group_lasso' has no argument 'rag'"):
        stepwise.regularizer(graph.get_all_groups, rag=0.5)
    with pytest.raises(pk.ArgumentError, match=r"No regularizer is set\."):
        pk.default_registry().regularizer(graph.get_all_groups)


def test_without_settings_a_pruner_is_the_base_pruner() -> None:
    pruner = pk.default_registry().pruner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), EXAMPLE)
    assert (type(pruner), pruner.pruning_ratio, pruner.iterative_steps) == (pk.BasePruner, 0.5, 1)


def test_what_settings_say_of_compensation_is_noted_where_there_are_no_data(tmp_path: Path) -> None:
    found = registry(tmp_path, 'compensation = "bias"\nstages = 2\n')
    result = pk.prune(Chain(4, 8, 3), EXAMPLE, **found.options())
    (note,) = result.report.notes
    assert note == "without calibration data nothing is compensated: compensation, stages did nothing"
    with_data = pk.prune(Chain(4, 8, 3), EXAMPLE, calibration=[EXAMPLE], **found.options())
    assert with_data.compensation is not None
    assert note not in with_data.report.notes
    with pytest.raises(pk.ArgumentError, match=r"stages needs calibration data\."):
        pk.prune(Chain(4, 8, 3), EXAMPLE, **found.options(stages=3))
    assert found.pruner(Chain(4, 8, 3), EXAMPLE).pruning_ratio == 0.5


def test_a_pruner_takes_no_target(tmp_path: Path) -> None:
    found = registry(tmp_path, "target = { macs = 0.5 }\n")
    with pytest.raises(pk.ArgumentError, match=r"A pruner takes a ratio, not a target\.(?s:.*)'macs': 0\.5"):
        found.pruner(Chain(4, 8, 3), EXAMPLE)
    assert found.pruner(Chain(4, 8, 3), EXAMPLE, ratio=0.25).pruning_ratio == 0.25


STEPS: list[tuple[str, str]] = [
    ('pruner = "bas"', r"No pruner is registered as 'bas'(?s:.*)did you mean 'base'"),
    ('regularizer = "group_lass"', r"No regularizer is registered as 'group_lass'"),
    ('regularizer = { name = "group_lasso", rag = 1 }', "The regularizer 'group_lasso' has no argument 'rag'"),
    ('iterative_pruning_ratio_scheduler = "cubick"', r"No schedule is registered as 'cubick'"),
    ("iterative_steps = 0", "'iterative_steps' must be a positive whole number"),
    ("pruner = 3", "'pruner' must be the name of a pruner"),
]


@pytest.mark.parametrize(("text", "message"), STEPS)
def test_wrong_settings_for_steps_are_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=message) as caught:
        registry(tmp_path, text)
    assert caught.value.where == str(tmp_path / "prunekit.toml")


def test_an_argument_that_no_pruner_takes_is_told_when_one_is_made(tmp_path: Path) -> None:
    found = registry(tmp_path, 'pruner = { name = "group_norm", rag = 1 }\n')
    with pytest.raises(pk.KeywordError, match="BasePruner has no argument called 'rag'"):
        found.pruner(Chain(4, 8, 3), EXAMPLE)

"""Settings of a project: where they are found, what is refused, and what they do."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit_core.projects.config import SETTINGS, Config, find_config, read_config
from tests.models import Chain

EVERYTHING = """
block = ["schedules", "stranger:more"]
importance = { name = "magnitude", p = 1, group_reduction = "max" }
target = { macs = 0.5, params = 100 }
pruning_ratio_dict = { "layers.0" = 0.25 }
max_pruning_ratio = 1.0
global_pruning = true
isomorphic = true
round_to = 2
ignored_layers = ["layers.1"]
head_pruning_ratio = 0.5
expert_pruning_ratio = 0.25
expert_importance = { name = "reap", relative = false }
serve = "transformers"
workload = { batch = 2, length = 8 }
prune_num_heads = true
prune_head_dims = false
uniform = true
free_outputs = ["hidden*"]
allocation = "greedy"
compensation = "bias"
reestimate_batchnorm = false
stages = 3
branch_ratio = 0.25
branch_importance = { name = "output_change", measure = "error" }
by = "depth"
keep_first = 0
keep_last = 2
keep_names = true
plugins = ["some.module", "tools/rules.py"]
pruner = { name = "group_norm", reg = 1e-3 }
regularizer = "group_lasso"
iterative_steps = 5
iterative_pruning_ratio_scheduler = "tools/rules.py:late"
plugin.one_cycle.alpha = 10
"""

RULES = """
from prunekit.plugin import hookimpl


@hookimpl
def prunekit_schedules():
    return {"late": late}


def late(ratio, steps):
    return [*[0.0] * steps, ratio]
"""


def written(folder: Path, text: str, name: str = "prunekit.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_every_setting_is_read(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, EVERYTHING))
    assert config.block == ("schedules", "stranger:more")
    assert (config.importance, config.importance_arguments) == ("magnitude", {"p": 1, "group_reduction": "max"})
    assert config.options == {
        "target": {"macs": 0.5, "params": 100},
        "pruning_ratio_dict": {"layers.0": 0.25},
        "max_pruning_ratio": 1.0,
        "global_pruning": True,
        "isomorphic": True,
        "round_to": 2,
        "ignored_layers": ["layers.1"],
        "head_pruning_ratio": 0.5,
        "expert_pruning_ratio": 0.25,
        "expert_importance": {"name": "reap", "relative": False},
        "serve": "transformers",
        "workload": {"batch": 2, "length": 8},
        "prune_num_heads": True,
        "prune_head_dims": False,
        "uniform": True,
        "free_outputs": ["hidden*"],
        "allocation": "greedy",
        "compensation": "bias",
        "reestimate_batchnorm": False,
        "stages": 3,
        "branch_ratio": 0.25,
        "branch_importance": {"name": "output_change", "measure": "error"},
        "by": "depth",
        "keep_first": 0,
        "keep_last": 2,
        "keep_names": True,
    }
    assert config.plugins == ("some.module", "tools/rules.py")
    assert config.tables == {"one_cycle": {"alpha": 10}}
    assert config.stepwise == {
        "pruner": {"name": "group_norm", "reg": 1e-3},
        "regularizer": "group_lasso",
        "iterative_steps": 5,
        "iterative_pruning_ratio_scheduler": f"{tmp_path}/tools/rules.py:late",
    }
    other = {"block", "plugins", "plugin", "importance", "ratio", "align", "branches"}
    assert {*config.options, *config.stepwise, *other} == set(SETTINGS)
    table = "[tool.other]\nx = 1\n[tool.prunekit]" + EVERYTHING
    assert read_config(written(tmp_path, table, "pyproject.toml")).options == config.options


def test_every_setting_has_a_row_on_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [part.split("`")[1] for row in rows for part in row.split("|")[1].split(",")]
    assert sorted(named) == sorted(SETTINGS)


def test_options_are_arguments_of_prune_and_base_pruner(tmp_path: Path) -> None:
    registry = pk.Registry.from_config(written(tmp_path, 'importance = "lamp"\nratio = 0.25\nround_to = 3\n'))
    assert registry.options() == {"registry": registry, "importance": "lamp", "ratio": 0.25, "round_to": 3}
    model = Chain(4, 12, 3)
    pk.prune(model, torch.randn(1, 4), **registry.options())
    assert model.layers[0].out_features == 9
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "rules.py").write_text(RULES)
    everything = pk.Registry.from_config(written(tmp_path, EVERYTHING.replace('"some.module", ', ""))).options()
    of_prune = {"target", "allocation", "compensation", "reestimate_batchnorm", "stages", "serve", "workload"}
    of_prune |= {"branch_ratio", "branch_importance", "by", "keep_first", "keep_last", "keep_names"}
    assert of_prune < set(inspect.signature(pk.prune).parameters)
    told = {name: value for name, value in everything.items() if name not in of_prune}
    with pytest.raises(pk.ArgumentError, match="hidden"):
        pk.BasePruner(Chain(4, 12, 3), torch.randn(1, 4), **told)
    pk.BasePruner(Chain(4, 12, 3), torch.randn(1, 4), **{**told, "free_outputs": ["*"]})


def test_a_ratio_also_wins_over_the_allocation_of_a_target(tmp_path: Path) -> None:
    text = 'target = { macs = 0.5 }\nallocation = "greedy"\n'
    registry = pk.Registry.from_config(written(tmp_path, text))
    assert registry.options(ratio=0.5) == {"registry": registry, "ratio": 0.5}
    assert registry.options()["allocation"] == registry.options(target={"macs": 0.2})["allocation"] == "greedy"
    pk.prune(Chain(4, 12, 3), torch.randn(1, 4), **registry.options(ratio=0.5))


def test_the_criterion_is_made_with_its_arguments(tmp_path: Path) -> None:
    text = 'importance = { name = "magnitude", p = 1, normalizer = "max" }\nratio = 0.5\n'
    registry = pk.Registry.from_config(written(tmp_path, text))
    criterion = registry.options()["importance"]
    model = Chain(2, 2, 2)
    with torch.no_grad():  # by sums of squares unit 1 wins, by sums of absolute values unit 0
        model.layers[0].weight.copy_(torch.tensor([[3.0, 3.0], [0.0, 5.0]]))
        for tensor in (model.layers[0].bias, model.layers[1].weight):
            tensor.zero_()
    group = next(iter(pk.DependencyGraph().build_dependency(model, torch.randn(1, 2)).get_all_groups()))
    assert criterion(group).tolist() == pytest.approx([1.0, 5 / 6])
    pk.prune(model, torch.randn(1, 2), **registry.options())
    assert model.layers[0].weight.tolist() == [[3.0, 3.0]]


def test_what_is_given_wins(tmp_path: Path) -> None:
    registry = pk.Registry.from_config(
        written(tmp_path, 'importance = { name = "magnitude", p = 1 }\ntarget = { macs = 0.5 }\nround_to = 2\n')
    )
    given = registry.options(ratio=0.1, importance="random", round_to=None)
    assert given == {"registry": registry, "ratio": 0.1, "importance": "random", "round_to": 2}
    assert registry.options(target={"params": 0.3})["target"] == {"params": 0.3}
    written(tmp_path, "ratio = 0.25\n")
    by_ratio = pk.Registry.from_config(tmp_path / "prunekit.toml")
    assert by_ratio.options(target={"params": 0.3}) == {"registry": by_ratio, "target": {"params": 0.3}}


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    written(tmp_path, "ratio = 0.1\n")
    written(tmp_path / "a", "[project]\nname = 'other'\n", "pyproject.toml")
    assert find_config(inner).options == {"ratio": 0.1}
    written(tmp_path / "a", "[tool.prunekit]\nratio = 0.2\n", "pyproject.toml")
    assert find_config(inner).options == {"ratio": 0.2}
    written(tmp_path / "a", "ratio = 0.3\n")
    assert find_config(inner).options == {"ratio": 0.3}
    assert pk.Registry.from_config(inner, search=True).config.path == tmp_path / "a" / "prunekit.toml"


def test_without_a_file_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pk.Registry.from_config(tmp_path, search=True)
    assert registry.config == Config()
    assert registry.options() == {"registry": registry}
    written(tmp_path, "ratio = 0.1\n")
    monkeypatch.chdir(tmp_path)
    assert pk.Registry().config == Config()


def test_a_foreign_file_that_is_broken_does_no_harm(tmp_path: Path) -> None:
    written(tmp_path, "[tool.other\n", "pyproject.toml")
    assert find_config(tmp_path) == Config()


def test_blocked_plugins_stay_blocked_in_registries_made_from_it(tmp_path: Path) -> None:
    registry = pk.Registry.from_config(written(tmp_path, 'block = ["schedules"]\n'), block=["budgets"])
    nothing: dict[str, Any] = {}
    more = SimpleNamespace(hook=plugin.hookimpl(lambda: nothing, specname="prunekit_budgets"))
    for found in (registry, registry.extended({"more": more})):
        assert {p.name: p.blocked_by for p in found.plugins() if p.blocked} == {
            "prunekit:budgets": "an argument",
            "prunekit:schedules": "prunekit.toml",
        }
        assert found.config is registry.config


WRONG: list[tuple[str, str]] = [
    ("rato = 0.5", r"There is no setting 'rato'\.(?s:.*)did you mean 'ratio'"),
    ("ratio = 1.0", r"'ratio' must be a number in \[0, 1\)\.(?s:.*)got 1.0"),
    ("ratio = true", r"'ratio' must be a number in \[0, 1\)\.(?s:.*)got True"),
    ("ratio = nan", "'ratio' must be a number"),
    ("ratio = 0.5\ntarget = { macs = 0.5 }", "Give a ratio or a target, not both"),
    ("target = 0.5", "'target' must be a table of cost models and positive numbers"),
    ("target = {}", "'target' must be a table of cost models"),
    ("target = { macs = 0 }", "'target' must be a table of cost models"),
    ("target = { mac = 0.5 }", r"'mac'(?s:.*)prunekit.toml(?s:.*)did you mean 'macs'"),
    ('importance = "magnitud"', r"'magnitud'(?s:.*)prunekit.toml(?s:.*)did you mean 'magnitude'"),
    ("importance = { p = 1 }", "'importance' must be the name of a criterion"),
    ('importance = { name = "magnitude", pp = 1 }', r"has no argument 'pp'(?s:.*)known: "),
    ("block = 'ops'", "'block' must be a list of plugins"),
    ("block = [1]", "'block' must be a list of plugins"),
    ("round_to = 0", "'round_to' must be a positive whole number"),
    ("round_to = true", "'round_to' must be a positive whole number"),
    ("stages = 0", "'stages' must be a positive whole number"),
    ('allocation = "dq"', "There is no allocation called 'dq'"),
    ("compensation = 1", "'compensation' must be the name of a compensator or a list of them"),
    ('compensation = ["leest_squares"]', r"'leest_squares'(?s:.*)prunekit.toml(?s:.*)did you mean 'least_squares'"),
    ("free_outputs = 'x'", "'free_outputs' must be a list of names of outputs"),
    ("max_pruning_ratio = 1.5", r"'max_pruning_ratio' must be a number in \[0, 1\]"),
    ("global_pruning = 1", "'global_pruning' must be true or false"),
    ("pruning_ratio_dict = { a = 1 }", "'pruning_ratio_dict' must be a table of layers"),
    ("ratio = ", r"prunekit\.toml is not valid TOML\."),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(pk.ArgumentError, match=message) as caught:
        pk.Registry.from_config(path)
    assert caught.value.where == str(path)


def test_arguments_that_the_criterion_refuses(tmp_path: Path) -> None:
    registry = pk.Registry.from_config(written(tmp_path, 'importance = { name = "magnitude", p = -1 }\n'))
    with pytest.raises(pk.ArgumentError, match="can't be made with these arguments") as caught:
        registry.options()
    assert caught.value.where == str(tmp_path / "prunekit.toml")
    assert caught.value.why == "The degree p must be a positive number. why: got -1"
    assert registry.options(importance="random")["importance"] == "random"


def test_criteria_that_take_any_argument_or_have_no_signature(tmp_path: Path) -> None:
    def own(**options: Any) -> Any:
        return lambda group: torch.full((group.size(),), options["level"])

    mine = SimpleNamespace(hook=plugin.hookimpl(lambda: {"own": own, "sum": type(sum)}, specname="prunekit_importance"))
    path = written(tmp_path, 'importance = { name = "own", level = 2.0 }\n')
    criterion = pk.Registry.from_config(path, extra={"own": mine}).options()["importance"]
    assert criterion(SimpleNamespace(size=lambda: 2)).tolist() == [2.0, 2.0]


def test_files_that_are_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pk.ArgumentError, match=r"There is no configuration file 'nosuch\.toml'"):
        pk.Registry.from_config(tmp_path / "nosuch.toml")
    shared = written(tmp_path, "[project]\nname = 'x'\n", "pyproject.toml")
    with pytest.raises(pk.ArgumentError, match=r"pyproject\.toml has no table \[tool\.prunekit\]"):
        pk.Registry.from_config(shared)
    with pytest.raises(pk.ArgumentError, match=r"tool\.prunekit in pyproject\.toml must be a table"):
        pk.Registry.from_config(written(tmp_path, "[tool]\nprunekit = 1\n", "pyproject.toml"))
    own = tmp_path / "prunekit.toml"
    own.write_bytes(b"\xff\xfe")
    with pytest.raises(pk.ArgumentError, match=r"prunekit\.toml can't be read"):
        pk.Registry.from_config(own)
    own.write_text("ratio = 0.5\n")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(pk.ArgumentError, match=r"(?s)can't be read.*no TOML parser.*pip install tomli"):
        pk.Registry.from_config(own)

"""Code that a project names without a package: plugins, criteria and others, from modules and from files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit_core.projects.code_names import anchored, is_code, place_of
from tests.models import Chain

EXAMPLE = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
SCORES = """
import torch


class First:
    "Keeps the first units, or the last."

    def __init__(self, sign=-1.0):
        self.sign = sign

    def __call__(self, group):
        return self.sign * torch.arange(group.size()).float()


def late(ratio, steps):
    return [*[0.0] * steps, ratio]


NUMBER = 3
"""
PLUGIN = """
from prunekit.plugin import hookimpl


@hookimpl
def prunekit_importance():
    from scores import First

    return {"first": First}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with files of code; what was imported from it, and the search path, are as before afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "scores.py").write_text(SCORES)
    monkeypatch.setattr(sys, "path", path)
    yield tmp_path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        places = [file] if file else list(getattr(sys.modules[name], "__path__", ()))
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


def settings(project: Path, text: str, name: str = "prunekit.toml") -> Path:
    path = project / name
    path.write_text(text)
    return path


def kept(registry: pk.Registry | None = None, **options: Any) -> tuple[int, ...]:
    torch.manual_seed(0)
    result = pk.prune(Chain(4, 8, 3), EXAMPLE, **({} if registry is None else registry.options()) | options)
    return result.plan.cuts[0].kept


@pytest.mark.parametrize(
    ("name", "place"),
    [("a:B", "a"), ("a.b:C.d", "a.b"), ("t/x.py:C", "t/x.py"), ("/t/x y.py:C", "/t/x y.py"), ("C:/x.py:D", "C:/x.py")],
)
def test_names_for_code(name: str, place: str) -> None:
    assert is_code(name)
    assert place_of(name) == place


@pytest.mark.parametrize("name", ["magnitude", "a.b", "a:", ":b", "a:b c", "my-dist:x", "t/x.py", "t/x:C", "a::b"])
def test_other_names(name: str) -> None:
    assert not is_code(name)
    assert place_of(name) == name


def test_paths_start_from_a_folder(tmp_path: Path) -> None:
    assert anchored("t/x.py:C", tmp_path) == f"{tmp_path}/t/x.py:C"
    assert anchored("../x.py", tmp_path / "a") == f"{tmp_path}/x.py"
    assert anchored("/x.py:C", tmp_path) == "/x.py:C"
    assert [anchored(name, tmp_path) for name in ("a.b:C", "a.b", "lamp")] == ["a.b:C", "a.b", "lamp"]


def test_a_criterion_of_a_file_is_named_in_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(importance=f"{project}/tools/scores.py:First") == (0, 1, 2, 3)
    monkeypatch.chdir(project)
    assert kept(importance="tools/scores.py:First") == (0, 1, 2, 3)
    pruner = pk.BasePruner(
        *(Chain(4, 8, 3), EXAMPLE, "tools/scores.py:First"),
        iterative_steps=2,
        iterative_pruning_ratio_scheduler="tools/scores.py:late",
    )
    pruner.step()
    assert not pruner.graph.applied.cuts
    pruner.step()
    assert pruner.graph.applied.cuts[0].kept == (0, 1, 2, 3)


def test_a_criterion_of_a_module_is_named_in_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project / "tools")
    assert kept(importance="scores:First") == (0, 1, 2, 3)


def test_settings_name_criteria_with_arguments(project: Path) -> None:
    inner = project / "a"
    inner.mkdir()
    text = 'importance = { name = "tools/scores.py:First", sign = 1.0 }\n'
    registry = pk.Registry.from_config(settings(project, text))
    assert kept(registry) == (4, 5, 6, 7)
    shared = pk.Registry.from_config(settings(project, f"[tool.prunekit]\n{text}", "pyproject.toml"))
    assert kept(shared) == (4, 5, 6, 7)
    assert kept(registry, importance="magnitude") != (4, 5, 6, 7)
    by_module = pk.Registry.from_config(settings(project, 'importance = "tools.scores:First"\n'))
    assert kept(by_module) == (0, 1, 2, 3)
    assert [entry for entry in sys.path if entry == str(project)] == [str(project)]


def test_settings_name_compensators_and_allocators(project: Path) -> None:
    (project / "own.py").write_text(
        "calls = []\n"
        "def forget():\n"
        "    def forgetting(repair):\n"
        "        calls.append(type(repair).__name__)\n"
        "    return forgetting\n"
        "def smallest(problem):\n"
        "    return [len(choice.options) - 1 for choice in problem.choices]\n"
    )
    text = 'target = { params = 0.9 }\nallocation = "own.py:smallest"\ncompensation = ["own.py:forget"]\n'
    registry = pk.Registry.from_config(settings(project, text))
    model = Chain(4, 8, 3)
    pk.prune(model, EXAMPLE, calibration=[EXAMPLE], **registry.options())
    assert model.layers[0].out_features == 1
    forget = registry.named("prunekit_compensators", str(project / "own.py") + ":forget")
    assert forget.__globals__["calls"][0] == "Repair"
    with pytest.raises(pk.ArgumentError, match="There is no allocation called 'own'"):
        registry.allocator("own")


def test_a_project_has_plugins(project: Path) -> None:
    (project / "plug.py").write_text(PLUGIN)
    (project / "scores.py").write_text(SCORES)
    registry = pk.Registry.from_config(settings(project, 'plugins = ["plug.py"]\nimportance = "first"\n'))
    assert kept(registry) == (0, 1, 2, 3)
    found = registry.entries("prunekit_importance")["first"].owner
    assert (found.name, found.rank) == ("plug.py", 2)
    assert registry.uninstalled == (str(project / "plug.py"),)
    for other in (registry.extended({}), pk.Registry(plugins=[project / "plug.py"])):
        assert other.uninstalled == registry.uninstalled
        assert kept(other, importance="first") == (0, 1, 2, 3)
    by_name = pk.Registry.from_config(settings(project, 'plugins = ["plug"]\n'))
    assert by_name.entries("prunekit_importance")["first"].value is sys.modules["scores"].First
    assert by_name.uninstalled == ("plug",)


def test_a_plugin_of_a_project_wins_over_installed_ones(project: Path) -> None:
    (project / "plug.py").write_text(PLUGIN.replace('"first"', '"magnitude"'))
    (project / "scores.py").write_text(SCORES)
    registry = pk.Registry.from_config(settings(project, 'plugins = ["plug.py"]\n'))
    assert registry.entries("prunekit_importance")["magnitude"].overrides == ("prunekit:importance",)
    assert kept(registry) == (0, 1, 2, 3)
    blocked = pk.Registry.from_config(project / "prunekit.toml", block=["plug.py"])
    assert [p.blocked_by for p in blocked.plugins() if p.name == "plug.py"] == ["an argument"]
    assert blocked.unused_blocks() == {}
    assert kept(blocked) != (0, 1, 2, 3)


def test_a_file_is_the_module_that_other_code_imports(project: Path) -> None:
    registry = pk.Registry.from_config(settings(project, 'importance = "tools/scores.py:First"\n'))
    found = registry.named("prunekit_importance", f"{project}/tools/scores.py:First")
    imported: ModuleType = __import__("tools.scores", fromlist=["First"])
    assert found is imported.First
    assert registry.named("prunekit_importance", f"{project}/tools/scores.py:First") is found


def test_a_file_that_no_import_finds_is_loaded_once(project: Path) -> None:
    odd = project / "my-scores.py"
    odd.write_text(SCORES)
    registry = pk.Registry(plugins=[])
    found = registry.named("prunekit_importance", f"{odd}:First")
    assert registry.named("prunekit_importance", f"{odd}:First") is found
    assert found.__module__.startswith("prunekit_file_")
    assert sys.modules[found.__module__].__file__ == str(odd)


def test_what_is_registered_wins_over_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    own = plugin.hookimpl(lambda: {"tools.scores:First": lambda: "registered"}, specname="prunekit_importance")
    registry = pk.Registry(extra={"own": type("Own", (), {"hook": staticmethod(own)})})
    assert registry.named("prunekit_importance", "tools.scores:First")() == "registered"


WRONG: list[tuple[str, str]] = [
    ('importance = "tools/scores.py:Fist"', r"There is no 'Fist' in .*scores\.py\.(?s:.*)did you mean 'First'"),
    ('importance = "tools/scors.py:First"', r"There is no file '.*/tools/scors\.py'\."),
    ('importance = "toolz.scores:First"', r"There is no module 'toolz\.scores'\.(?s:.*)name it as in an import"),
    ('importance = "tools/scores.py:NUMBER"', r"NUMBER' can't be used like this(?s:.*)can be called, and is 3"),
    ('importance = { name = "tools/scores.py:First", sgn = 1 }', r"has no argument 'sgn'(?s:.*)did you mean 'sign'"),
    ('pruner = "tools/scores.py:late"', r"late' can't be used like this(?s:.*)must be a class"),
    ('plugins = ["tools/scors.py"]', r"There is no file '.*/tools/scors\.py'\."),
    ('plugins = "tools/scores.py"', r"'plugins' must be a list of modules and files"),
    ('target = { "tools/scores.py:late" = 0.5 }', r"No budget is registered as 'tools/scores\.py:late'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_names_are_told(project: Path, text: str, message: str) -> None:
    path = settings(project, f"\n{text}\n")
    with pytest.raises(pk.ArgumentError, match=message) as caught:
        pk.Registry.from_config(path)
    assert str(project) in caught.value.where


def test_code_that_raises_is_told_with_its_line(project: Path) -> None:
    (project / "broken.py").write_text("import torch\n\ntorch.zeros(2) @ torch.zeros(3)\n")
    registry = pk.Registry.from_config(settings(project, 'importance = "broken.py:First"\n'))
    with pytest.raises(pk.PluginError, match="Code can't be loaded") as caught:
        kept(registry)
    assert caught.value.why.startswith("RuntimeError: ")
    assert caught.value.why.endswith(f"({project}/broken.py:3)")
    (project / "other.py").write_text("import nosuch_module\n")
    with pytest.raises(pk.PluginError, match="No module named 'nosuch_module'"):
        kept(importance=f"{project}/other.py:First")
    assert "other" not in sys.modules


DEFECTS: list[tuple[str, str, str]] = [
    ("import torch\n1 / 0\n", "A plugin can't be loaded.", "ZeroDivisionError: division by zero ({file}:2)"),
    ("x = (\n", "A plugin can't be loaded.", "{file}:1"),
    ("x = 1\n", "A plugin implements no hook.", "has no marked function"),
    (PLUGIN.replace("importance()", "importances()"), "A plugin implements a hook that doesn't exist.", "importances"),
    (PLUGIN.replace("importance()", "schedules()").replace("First}", "3}"), "wrong value.", "is 3 for 'first'"),
]


@pytest.mark.parametrize(("source", "headline", "why"), DEFECTS)
def test_a_defect_of_a_projects_plugin_is_told_with_file_and_line(
    project: Path, source: str, headline: str, why: str
) -> None:
    (project / "scores.py").write_text(SCORES)
    (project / "plug.py").write_text(source)
    path = settings(project, 'ratio = 0.5\nplugins = ["plug.py"]\n')
    with pytest.raises(pk.PluginError) as caught:
        pk.Registry.from_config(path)
    assert headline in caught.value.headline
    assert why.format(file=project / "plug.py") in caught.value.why
    line = f"{path}:2" if "loaded" in headline else f"{project}/plug.py:"
    assert caught.value.where.startswith(f"plug.py ({line}")


def test_without_plugins_no_code_of_a_project_is_loaded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "plug.py").write_text("raise SystemExit('loaded')\n")
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", "1")
    registry = pk.Registry.from_config(settings(project, 'plugins = ["plug.py"]\n'))
    assert [p.blocked_by for p in registry.plugins() if p.name == "plug.py"] == ["PRUNEKIT_NO_PLUGINS"]
    assert str(project) not in sys.path
    with pytest.raises(pk.ArgumentError, match=r"First' isn't loaded\.(?s:.*)PRUNEKIT_NO_PLUGINS is set"):
        kept(importance=f"{project}/tools/scores.py:First")


def test_reading_settings_loads_nothing(project: Path) -> None:
    (project / "plug.py").write_text("raise SystemExit('loaded')\n")
    settings(project, 'plugins = ["plug.py"]\nimportance = "plug.py:First"\n')
    config = plugin.find_config(project)
    assert config.code() == ["plug.py", f"{project}/plug.py:First"]
    assert pk.Registry().config == pk.Config()


def test_a_plan_never_loads_code(project: Path) -> None:
    """It names replacements of modules; a plan may come from somebody else."""
    (project / "bomb.py").write_text("raise SystemExit('loaded')\n")
    torch.manual_seed(0)
    text = pk.prune(Chain(4, 8, 3), EXAMPLE).plan.to_json()
    swap = f'{{"module": "layers.0", "replacement": "{project}/bomb.py:Bomb"}}'
    assert '"swaps": []' in text
    plan = pk.Plan.from_json(text.replace('"swaps": []', f'"swaps": [{swap}]'))
    with pytest.raises(pk.ArgumentError, match="No replacement is registered as"):
        plan.apply(Chain(4, 8, 3))


def test_registered_things_alone_are_named_where_files_of_strangers_name_them(project: Path) -> None:
    name = f"{project}/tools/scores.py:First"
    for hook in ("prunekit_replacements", "prunekit_weights", "prunekit_budgets", "prunekit_commands"):
        with pytest.raises(pk.ArgumentError, match="is registered as"):
            pk.default_registry().named(hook, name)

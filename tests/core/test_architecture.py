"""The structure, read from the source: arrows point one way, files stay small, the core knows no plugin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    "errors", "arguments", "interrupts", "files",
    "algebra", "modules", "program", "plugins", "record", "groups", "plans", "rehearse", "check", "checkpoints",
    "graph", "choose", "calibration", "compensation", "budgets", "prune", "testing",
)  # fmt: skip
"""The core's files and packages: each imports only what stands before it. README's picture is this list."""

MOST_FILES = 16
CROWDED = {"ops": "one file for each family of operations", "importance": "one file for each criterion"}
"""Folders that may have more files."""

INTERNALS = ("_python_dispatch", "_subclasses", "FakeTensor", "TorchDispatchMode", ".decompose(", "_can_decompose")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_list_of_the_core_is_complete() -> None:
    found = {p.stem for p in (ROOT / "prunekit_core").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found == {*CORE, "__init__"}


def place(dotted: str) -> tuple[str, str]:
    """Returns the package and the file of a module of the core: ``("algebra", "axes")``, or ``("errors", "")``."""
    parts = [*dotted.split("."), "", ""]
    return parts[1], parts[2]


@pytest.mark.parametrize("name", CORE)
def test_packages_of_the_core_import_only_packages_before_them(name: str) -> None:
    earlier = {*CORE[: CORE.index(name)], name}
    folder = ROOT / "prunekit_core" / name
    for path in sorted(folder.glob("*.py")) or [folder.with_suffix(".py")]:
        for imported in imports(path):
            if imported.startswith("prunekit_core."):
                assert place(imported)[0] in earlier, f"{path.name} imports {imported}"


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Returns the names that reach themselves."""
    left = {name: targets & arrows.keys() for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("name", [name for name in CORE if (ROOT / "prunekit_core" / name).is_dir()])
def test_no_package_of_the_core_has_a_circle(name: str) -> None:
    arrows = {
        path.stem: {place(i)[1] for i in imports(path) if i.startswith(f"prunekit_core.{name}.")} - {path.stem}
        for path in (ROOT / "prunekit_core" / name).glob("*.py")
    }
    assert circle(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "elsewhere"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("package", ["prunekit_core", "prunekit_plugins"])
def test_folders_hold_no_more_files_than_one_can_keep_in_mind(package: str) -> None:
    folders = {path.parent for path in sources(package)}
    sizes = {folder.name: len([p for p in folder.glob("*.py") if p.stem != "__init__"]) for folder in folders}
    assert {name for name, size in sizes.items() if size > MOST_FILES} <= CROWDED.keys()


def test_the_picture_in_the_readme_is_the_list() -> None:
    picture = (ROOT / "README.md").read_text().split("   prunekit_core  ")[1].split("```")[0]
    words = [line.split()[0] for line in picture.splitlines()[1:] if line.strip()]
    assert tuple(words) == CORE[CORE.index("algebra") :]


@pytest.mark.parametrize("path", sources("prunekit_core"), ids=lambda p: p.name)
def test_the_core_names_no_plugin(path: Path) -> None:
    assert "prunekit_plugins" not in path.read_text()


@pytest.mark.parametrize("path", sources("prunekit_plugins"), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_use_public_names_of_the_core_only(path: Path) -> None:
    import prunekit_core

    for imported in imports(path):
        if imported.startswith("prunekit_core."):
            assert imported.removeprefix("prunekit_core.") in prunekit_core.__all__, imported


def test_all_is_true() -> None:
    import prunekit_core

    assert len(prunekit_core.__all__) == len(set(prunekit_core.__all__))
    assert all(hasattr(prunekit_core, name) for name in prunekit_core.__all__)


@pytest.mark.parametrize("path", [*sources("prunekit_core"), *sources("prunekit_plugins")], ids=lambda p: p.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            signature = node.body[0].lineno if ast.get_docstring(node) is None else node.body[0].end_lineno or 0
            assert node.end_lineno - signature < 60, f"{path.name}:{node.name}"


def test_what_torch_does_not_promise_is_used_in_four_files() -> None:
    users = {p.stem for p in sources("prunekit_core") if any(word in p.read_text() for word in INTERNALS)}
    assert users == {"fakes", "random_numbers", "shadow", "valueless"}


def test_only_surgery_and_transactions_write_parameters() -> None:
    writers = {p.stem for p in sources("prunekit_core") if p.parent.name != "testing" and ".data = " in p.read_text()}
    assert writers == {"surgery", "transaction"}


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
FACTORIES |= {"tensor", "zeros"}
OWN_PROGRAMS = ("commands/demo", "compat", "testing/layer_check.py", "testing/network.py")
"""What makes models and inputs of its own, on the default device as a user's program would."""


@pytest.mark.parametrize("path", [*sources("prunekit_core"), *sources("prunekit_plugins")], ids=lambda p: p.name)
def test_tensors_say_where_they_lie(path: Path) -> None:
    """So that a default device that the user has set is the model's affair only."""
    if any(part in str(path) for part in OWN_PROGRAMS):
        pytest.skip("makes models and inputs of its own")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            assert any(keyword.arg == "device" for keyword in node.keywords), f"line {node.lineno}: {ast.unparse(node)}"

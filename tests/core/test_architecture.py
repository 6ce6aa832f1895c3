"""The structure, read from the source: arrows point one way, files stay small, the core knows no plugin."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import prunekit

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    "errors", "arguments", "interrupts", "shortcuts", "collector", "files", "door", "torch_private",
    "algebra", "modules", "program", "projects", "plugins", "record", "groups", "branches", "plans", "rehearse",
    "check", "graph", "choose",
)  # fmt: skip
"""The core's files and packages: each imports only what stands before it. README's picture is this list."""

PLUGINS = (
    "ops", "layers", "replacements", "schedules", "checkpoints", "calibration", "compensation", "importance", "measure",
    "budgets", "depth", "classic", "regularizers", "pruners", "prune", "vocabulary", "positions", "distill", "shrink",
    "doctor", "reports", "integrations", "folders", "export", "serving", "distributed", "testing", "compat", "cli",
)  # fmt: skip
"""The packages of built-in plugins, likewise."""

AROUND_THE_CORE = (
    *("checkpoints", "calibration", "compensation", "budgets", "depth", "classic", "prune", "vocabulary", "positions"),
    *("distill", "shrink", "testing"),
)
"""Packages that decide, measure, fit and store: they work with the core's packages, as one who embeds it would."""

MOST_FILES = 16
CROWDED = {
    "ops": "one file for each family of operations",
    "importance": "one file for each criterion",
    "testing": "one file for each check",
}
"""Folders that may have more files."""


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
    assert late("prunekit_core", name, CORE) == []


def test_the_list_of_plugins_is_complete() -> None:
    found = {p.name for p in (ROOT / "prunekit_plugins").iterdir() if (p / "__init__.py").exists()}
    assert found == set(PLUGINS)


@pytest.mark.parametrize("name", PLUGINS)
def test_packages_of_plugins_import_only_packages_before_them(name: str) -> None:
    assert late("prunekit_plugins", name, PLUGINS) == []


def late(package: str, name: str, order: tuple[str, ...]) -> list[str]:
    """Lists what a package imports although it stands after it in an order."""
    earlier = {*order[: order.index(name)], name}
    folder = ROOT / package / name
    return [
        f"{path.name} imports {imported}"
        for path in sorted(folder.rglob("*.py")) or [folder.with_suffix(".py")]
        for imported in imports(path)
        if imported.startswith(f"{package}.") and place(imported)[0] not in earlier
    ]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Returns the names that reach themselves."""
    left = {name: targets & arrows.keys() for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


PACKAGES = [
    *(f"prunekit_core.{name}" for name in CORE if (ROOT / "prunekit_core" / name).is_dir()),
    *(f"prunekit_plugins.{name}" for name in PLUGINS),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_a_circle(package: str) -> None:
    arrows = {
        path.stem: {place(i)[1] for i in imports(path) if i.startswith(f"{package}.")} - {path.stem}
        for path in ROOT.joinpath(*package.split(".")).glob("*.py")
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
    assert tuple(words) == CORE[CORE.index("torch_private") :]


@pytest.mark.parametrize("path", sources("prunekit_core"), ids=lambda p: p.name)
def test_the_core_names_no_plugin(path: Path) -> None:
    assert "prunekit_plugins" not in path.read_text()


@pytest.mark.parametrize("path", sources("prunekit_plugins"), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_use_the_public_doors_only(path: Path) -> None:
    if path.relative_to(ROOT / "prunekit_plugins").parts[0] not in AROUND_THE_CORE:
        assert [name for name in imports(path) if name.startswith("prunekit_core")] == []


DOORS = ("prunekit_core", "prunekit", "prunekit.plugin", "prunekit.command")


def told_to_type_checkers(door: str) -> dict[str, str]:
    """Reads what a door imports for type checkers: name to module."""
    module = importlib.import_module(door)
    assert module.__file__
    found = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                found.update({alias.asname or "": line.module or "" for alias in line.names})
    return found


@pytest.mark.parametrize("door", DOORS)
def test_doors_show_their_names_and_no_more(door: str) -> None:
    module = importlib.import_module(door)
    homes = {name: home for home, names in module._HOMES.items() for name in names.split()}
    assert told_to_type_checkers(door) == homes
    assert dir(module) == module.__all__ == sorted(homes)
    assert all(hasattr(module, name) for name in homes)
    with pytest.raises(AttributeError, match=f"module '{door}' has no attribute 'Shadow'"):
        module.Shadow  # noqa: B018


def test_users_see_few_names() -> None:
    assert len(prunekit.__all__) <= 58


@pytest.mark.parametrize("path", [*sources("prunekit_core"), *sources("prunekit_plugins")], ids=lambda p: p.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            signature = node.body[0].lineno if ast.get_docstring(node) is None else node.body[0].end_lineno or 0
            assert node.end_lineno - signature < 60, f"{path.name}:{node.name}"


PROMISED = {"_parameters", "_buffers", "_modules"}
"""Names with an underscore that are as good as public: PyTorch's documentation of modules uses them."""


def unpromised(source: str) -> list[str]:
    """Lists what a source uses of PyTorch (or of Python) that is private by its name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if "._" in alias.name]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("prunekit"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if "._" in name and name.split(".")[0] != "__future__"]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and node.attr not in PROMISED:
                found.append(ast.unparse(node))
    return found


OWN = {"axes.py": {"root._link", "axis._link", "a._link"}}
"""A class's own attributes, of other objects of the class."""


@pytest.mark.parametrize("path", sources("prunekit_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_torch_does_not_promise_is_used_in_one_package(path: Path) -> None:
    if path.parent.name != "torch_private":
        assert set(unpromised(path.read_text())) <= OWN.get(path.name, set())


def test_what_is_not_promised_is_found() -> None:
    source = """
import torch._dynamo
from torch.utils import _pytree as pytree
from torch._ops import HigherOrderOperator
name = op._schema.name
frame = sys._getframe(1)
flag = torch._C._has_storage(tensor)
tensor._is_param = True
mine = self._cache
table = module._parameters
"""
    assert sorted(unpromised(source)) == sorted(
        [
            "torch._dynamo",
            "torch.utils._pytree",
            "torch._ops.HigherOrderOperator",
            "op._schema",
            "sys._getframe",
            "torch._C._has_storage",
            "torch._C",
            "tensor._is_param",
        ]
    )


def test_only_surgery_and_transactions_write_parameters() -> None:
    writers = {p.stem for p in sources("prunekit_core") if ".data = " in p.read_text()}
    assert writers == {"surgery", "transaction"}


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
FACTORIES |= {"tensor", "zeros"}
OWN_PROGRAMS = ("commands/demo", "compat", "testing/layers/layer_check.py", "testing/network.py")
"""What makes models and inputs of its own, on the default device as a user's program would."""


@pytest.mark.parametrize("path", [*sources("prunekit_core"), *sources("prunekit_plugins")], ids=lambda p: p.name)
def test_tensors_say_where_they_lie(path: Path) -> None:
    """So that a default device that the user has set is the model's affair only."""
    if any(part in str(path) for part in OWN_PROGRAMS):
        pytest.skip("makes models and inputs of its own")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            assert any(keyword.arg == "device" for keyword in node.keywords), f"line {node.lineno}: {ast.unparse(node)}"

"""The structure, read from the source: arrows point one way, files stay small, the core knows no plugin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = [
    "errors",
    "arguments",
    "interrupts",
    "transaction",
    "exclusive",
    "sharding",
    "packed",
    "axes",
    "layout",
    "requirements",
    "polynomial",
    "attributes",
    "outputs",
    "trace",
    "sameness",
    "scaling",
    "rules",
    "extents",
    "calls",
    "consumers",
    "moments",
    "surgery",
    "captured",
    "twin",
    "marks",
    "examples",
    "given",
    "draws",
    "modes",
    "opaque",
    "regime",
    "fakes",
    "hollow",
    "lent",
    "functions",
    "caches",
    "sink",
    "shadow",
    "decisions",
    "recorder",
    "unread",
    "propagate",
    "zeros",
    "layers",
    "hookspecs",
    "config",
    "blame",
    "registry",
    "naming",
    "files",
    "tensorfile",
    "shards",
    "sources",
    "edits",
    "stated",
    "custom_layers",
    "optimizers",
    "application",
    "composition",
    "pricing",
    "plan",
    "programs",
    "unseen",
    "momentum",
    "analysis",
    "costs",
    "comparison",
    "rehearsal",
    "sites",
    "recipes",
    "causes",
    "ladder",
    "deviation",
    "folding",
    "flow",
    "transfer",
    "deviations",
    "origins",
    "rescale",
    "drafting",
    "sides",
    "masked_run",
    "exactness",
    "verification",
    "report",
    "unwrapped",
    "numbering",
    "history",
    "group",
    "reading",
    "standing",
    "graph",
    "constants",
    "batches",
    "sums",
    "watching",
    "statistics",
    "curvature",
    "demand",
    "calibration",
    "uses",
    "layer_fit",
    "gathering",
    "repair",
    "compensation",
    "declarations",
    "alignment",
    "selection",
    "criterion",
    "schedule",
    "ranking",
    "chooser",
    "options",
    "knapsack",
    "families",
    "siblings",
    "scopes",
    "pruner",
    "trials",
    "targets",
    "curves",
    "measuring",
    "allocation",
    "protocol",
    "calibrated",
    "allotment",
    "api",
    "checkpoint",
    "conversion",
]
"""The core's files in import order: each imports only files before it."""

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


def test_the_list_of_core_files_is_complete() -> None:
    assert sorted([*CORE, "__init__"]) == sorted(p.stem for p in (ROOT / "prunekit_core").glob("*.py"))


@pytest.mark.parametrize("name", CORE)
def test_core_files_import_only_files_before_them(name: str) -> None:
    earlier = CORE[: CORE.index(name)]
    for imported in imports(ROOT / "prunekit_core" / f"{name}.py"):
        parts = imported.split(".")
        if parts[0] == "prunekit_core":
            assert parts[1] in earlier, f"{name} imports {imported}"


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
    assert users == {"draws", "fakes", "hollow", "shadow"}


def test_only_surgery_and_transactions_write_parameters() -> None:
    writers = {p.stem for p in sources("prunekit_core") if p.parent.name != "testing" and ".data = " in p.read_text()}
    assert writers == {"surgery", "transaction"}


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"}
FACTORIES |= {"tensor", "zeros"}
OWN_PROGRAMS = ("cli/demo", "compat", "testing/layer_check.py", "testing/network.py")
"""What makes models and inputs of its own, on the default device as a user's program would."""


@pytest.mark.parametrize("path", [*sources("prunekit_core"), *sources("prunekit_plugins")], ids=lambda p: p.name)
def test_tensors_say_where_they_lie(path: Path) -> None:
    """So that a default device that the user has set is the model's affair only."""
    if any(part in str(path) for part in OWN_PROGRAMS):
        pytest.skip("makes models and inputs of its own")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            assert any(keyword.arg == "device" for keyword in node.keywords), f"line {node.lineno}: {ast.unparse(node)}"

"""The reference pages are complete: names, hooks, errors, files, links, set-up commands."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest

import prunekit_core
from prunekit_core import PrunekitError, errors, hookspecs
from prunekit_core.registry import HOOKS
from tests.docs.snippets import DOCUMENTS, ROOT, blocks_of

CORE = ROOT / "prunekit_core"
DOCS = ROOT / "docs"
PUBLIC = ("budgets", "distributed", "importance", "integrations", "layers", "pruners", "regularizers", "schedules")


def listed_names(title: str) -> list[str]:
    """Names in the tables under a heading of the page of public names."""
    sections = re.split(r"^## ", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    section = next(section for section in sections if section.splitlines()[0] == title)
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "package", ["prunekit_core", "prunekit_core.testing", *(f"prunekit_plugins.{p}" for p in PUBLIC)]
)
def test_public_names_are_listed_exactly(package: str) -> None:
    assert sorted(listed_names(package)) == sorted(importlib.import_module(package).__all__)


def test_every_hook_has_a_section_with_its_signature() -> None:
    tree = ast.parse(inspect.getsource(hookspecs))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert sorted(functions) == sorted(HOOKS)
    headings = re.findall(r"^## `(.*)`$", (DOCS / "hooks.md").read_text(), flags=re.MULTILINE)
    expected = []
    for name in HOOKS:
        returns = functions[name].returns
        assert returns is not None
        assert not functions[name].args.args
        expected.append(f"{name}() -> {ast.unparse(returns)}")
    assert headings == expected


def test_every_hook_is_used_by_an_example() -> None:
    code = "".join(block.text for block in blocks_of((DOCS / "hooks.md").read_text()) if block.language == "python")
    for name in HOOKS:
        assert f"def {name}(" in code


def test_every_error_class_has_a_section() -> None:
    classes = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, PrunekitError)
    ]
    headings = re.findall(r"^## (\w+Error)$", (DOCS / "errors.md").read_text(), flags=re.MULTILINE)
    assert len(classes) > 8
    assert sorted(headings) == sorted([*classes, "AxisMismatchError"])


def headlines() -> dict[str, str]:
    """Headlines of errors that the core, the layers and the criteria raise: text to the place in the source."""
    found = {}
    names = {name for name in prunekit_core.__all__ if name.endswith("Error")} - {"AxisMismatchError"}
    for path in [*CORE.glob("*.py"), *(ROOT / "prunekit_plugins").glob("[li]*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                headline = node.args[0]
                if isinstance(headline, ast.Constant):
                    found[str(headline.value)] = f"{path.name}:{node.lineno}"
    return found


def test_every_plain_headline_is_explained() -> None:
    text = (DOCS / "errors.md").read_text()
    known = headlines()
    assert len(known) > 40
    missing = {headline: place for headline, place in known.items() if headline not in text}
    assert missing == {}


def test_core_files_are_listed_in_an_order_in_which_they_can_be_imported() -> None:
    document = (DOCS / "how-it-works.md").read_text()
    table = document.split("<!-- core files -->")[1].split("```")[1]
    order = [line.split()[0] for line in table.splitlines()[1:] if line]
    files = {path.stem for path in CORE.glob("*.py")} - {"__init__"} | {"testing"}
    assert sorted(order) == sorted(files)
    for position, name in enumerate(order):
        if name == "testing":
            continue
        imported = re.findall(
            r"^from prunekit_core\.(\w+) import", (CORE / f"{name}.py").read_text(), flags=re.MULTILINE
        )
        modules = re.findall(r"^from prunekit_core import (.*)$", (CORE / f"{name}.py").read_text(), flags=re.MULTILINE)
        imported += [part.split(" as ")[0].strip() for line in modules for part in line.split(",")]
        late = [other for other in imported if other not in order[:position]]
        assert late == [], f"{name} imports {late}, which come later in the list"


def test_the_picture_in_the_readme_shows_every_core_file_in_that_order() -> None:
    document = (DOCS / "how-it-works.md").read_text()
    table = document.split("<!-- core files -->")[1].split("```")[1]
    order = [line.split()[0] for line in table.splitlines()[1:] if line]
    picture = (ROOT / "README.md").read_text().split("knows no operation, no layer, no criterion\n")[1].split("```")[0]
    shown = [name for line in picture.splitlines() for name in line.split()[1:]]
    assert shown == order


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.is_file(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{path.name} links to {target}"


def test_there_are_exactly_two_set_up_commands_and_their_extras_exist() -> None:
    commands = [block.text.strip() for block in blocks_of((ROOT / "README.md").read_text()) if block.language == "sh"]
    assert commands == [
        'python -m venv .venv && .venv/bin/pip install -e ".[demo,vision]" && .venv/bin/prunekit demo',
        'python -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest',
    ]
    assert {"demo", "vision", "test"} <= set(metadata.metadata("prunekit").get_all("Provides-Extra", []))

"""The reference pages are complete: names, hooks, errors, files, links, set-up commands."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest

import prunekit.plugin
import prunekit_core
from prunekit import PrunekitError
from prunekit_core import errors
from prunekit_core.plugins.registry import HOOKS
from tests.core.test_hooks import USES
from tests.docs import flag_page, hook_pages
from tests.docs.snippets import DOCUMENTS, ROOT, blocks_of

CORE = ROOT / "prunekit_core"
DOCS = ROOT / "docs"
PLUGINS = ROOT / "prunekit_plugins"
RAISING = (
    "classic",
    "budgets",
    "calibration",
    "checkpoints",
    "compensation",
    "distill",
    "folders",
    "importance",
    "integrations",
    "layers",
    "positions",
    "prune",
    "shrink",
    "vocabulary",
)
"""The packages of plugins whose errors the page of errors explains."""
SAYING = sorted(
    path.parent.name
    for path in PLUGINS.glob("*/__init__.py")
    if "\n__all__ = " in path.read_text() and path.parent.name != "testing"
)
"""The packages that say what is public; tests/compat compares that of Torch-Pruning's names with Torch-Pruning."""


def listed_names(title: str) -> list[str]:
    """Names in the tables under a heading of the page of public names."""
    sections = re.split(r"^## ", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    section = next(section for section in sections if section.splitlines()[0] == title)
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


DOORS = {*prunekit.__all__, *prunekit.plugin.__all__}
PUBLIC = [name for name in SAYING if not set(importlib.import_module(f"prunekit_plugins.{name}").__all__) <= DOORS]
"""Those that show more than the doors do."""


@pytest.mark.parametrize("package", ["prunekit", "prunekit.testing", "prunekit.command"])
def test_public_names_are_listed_exactly(package: str) -> None:
    assert sorted(listed_names(package)) == sorted(importlib.import_module(package).__all__)


def test_names_for_authors_are_listed_exactly() -> None:
    assert sorted(listed_names("prunekit.plugin")) == sorted({*prunekit.plugin.__all__} - {*prunekit.__all__})
    for name in {*prunekit.plugin.__all__} & {*prunekit.__all__}:
        assert f"`{name}`" in (DOCS / "api.md").read_text().split("Also here, as they are in `prunekit`:")[1]


@pytest.mark.parametrize("name", PUBLIC)
def test_names_of_built_in_plugins_are_listed_exactly(name: str) -> None:
    package = f"prunekit_plugins.{name}"
    listed, shown = set(listed_names(package)), set(importlib.import_module(package).__all__)
    assert shown - DOORS <= listed <= shown


def test_packages_around_the_core_show_the_rest_of_the_doors() -> None:
    shown = {name for part in SAYING for name in importlib.import_module(f"prunekit_plugins.{part}").__all__}
    assert not DOORS - shown - {*prunekit_core.__all__}


def test_every_package_of_the_page_is_compared() -> None:
    headings = re.findall(r"^## (prunekit\w*\.\w+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    compared = [
        "prunekit.plugin",
        "prunekit.testing",
        "prunekit.command",
        *(f"prunekit_plugins.{name}" for name in PUBLIC),
    ]
    assert sorted(headings) == sorted(compared)


def sections() -> dict[str, str]:
    """The sections of the page of hooks, by hook."""
    parts = re.split(r"^## `(prunekit_\w+)\(\)[^\n]*`$", hook_pages.PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_of_hooks_has_a_section_for_every_hook_in_order() -> None:
    headings = re.findall(r"^## `(.*)`$", hook_pages.PAGE.read_text(), flags=re.MULTILINE)
    assert headings == list(hook_pages.signatures().values())


def test_the_page_of_hooks_says_what_the_specifications_say() -> None:
    page = hook_pages.PAGE.read_text()
    assert page == hook_pages.rewritten(page), "run python -m tests.docs.hook_pages"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_whole(hook: str) -> None:
    """A contract, a complete example that prints something, and a test; tests/core/test_registry.py asks for a
    built-in plugin that uses it."""
    section = sections()[hook]
    assert hook_pages.generated(hook) in section
    blocks = blocks_of(section)
    shown = [place for place, block in enumerate(blocks) if f"def {hook}(" in block.text]
    assert shown, f"no example in docs/hooks.md implements {hook}"
    assert all(blocks[place + 1].language == "text" for place in shown), f"an example of {hook} prints nothing"
    assert hook in USES, f"tests/core/test_hooks.py doesn't use {hook}"


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
    names = {name for name in prunekit.__all__ if name.endswith("Error")} - {"AxisMismatchError"}
    for path in [*CORE.rglob("*.py"), *(path for name in RAISING for path in (PLUGINS / name).glob("*.py"))]:
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
    table = (DOCS / "how-it-works.md").read_text().split("<!-- core files -->")[1].split("```")[1]
    order: list[str] = []
    for line in table.splitlines()[1:]:
        name = line.split()[0]
        package = line.startswith(" ") and next(above for above in reversed(order) if above.endswith("/"))
        order.append(f"{package}{name}" if package else name)
    files = [path.relative_to(CORE).with_suffix("") for path in CORE.rglob("*.py") if path.stem != "__init__"]
    listed = [name for name in order if not name.endswith("/")]
    assert sorted(listed) == sorted(map(str, files))
    for name in listed:
        tree = ast.parse((CORE / f"{name}.py").read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        names = [f"{node.module}.{alias.name}".split(".")[1:] for node in found for alias in node.names]
        imported = {"/".join(parts[:size]) for parts in names for size in (1, 2, 3)} & set(listed)
        late = imported - set(listed[: listed.index(name)])
        assert late == set(), f"{name} imports {late}, which come later in the list"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, *ROOT.glob("[!R]*.md")], ids=lambda path: path.name)
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
        'python -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest -n 2',
    ]
    assert {"demo", "vision", "test"} <= set(metadata.metadata("prunekit").get_all("Provides-Extra", []))


def test_functions_that_texts_name_are_there() -> None:
    """In docstrings, hints and errors: ``prunekit.save`` sends a user to a function of the door."""
    files = [path for name in ("prunekit", "prunekit_core", "prunekit_plugins") for path in (ROOT / name).rglob("*.py")]
    texts = {
        node.value: path
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = {
        (door, name): path
        for text, path in texts.items()
        for door, name in re.findall(r"\b(prunekit|prunekit_core)\.([a-zA-Z]\w*)", text)
        if name not in ("json", "toml")  # files of these names
    }
    assert len(named) > 10
    for (door, name), path in named.items():
        folder = ROOT / door / name
        assert name in dir(importlib.import_module(door)) or folder.exists() or folder.with_suffix(".py").exists(), (
            f"{path.name} names {door}.{name}"
        )


def test_the_page_of_flags_is_what_the_commands_take() -> None:
    """Otherwise: ``python -m tests.docs.flag_page``."""
    assert flag_page.PAGE.read_text() == flag_page.page()
    assert "| `--free-output` `NAME` | An output that may lose units" in flag_page.page()

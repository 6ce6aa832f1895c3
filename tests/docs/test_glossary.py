"""The glossary points at what exists, and words that were retired don't come back as names of code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

ENTRY = re.compile(r"^- (?P<terms>\*\*.*?\*\*): (?P<text>.*?)(?=^- \*\*|^#|\Z)", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"\((?P<names>(?:`\w+`, )*)`(?P<file>[\w/]+\.py)`\)$")
PACKAGES = ("prunekit", "prunekit_core", "prunekit_plugins")

RETIRED = {
    "anew": "again",
    "asked": "read, called, requested",
    "captured": "closure",
    "habit": "handling",
    "hollow": "valueless",
    "hollows": "valueless",
    "kinship": "correspondence",
    "lent": "shared memory",
    "regime": "run settings",
    "sink": "listener",
    "standing": "current",
    "stated": "expected, by type",
    "told": "what it was told",
    "twin": "copy, sibling",
    "twins": "copies, siblings",
    "wounds": "awkward models",
}
"""Words without a technical meaning, with the words that took their places."""


def entries() -> list[tuple[str, str]]:
    """The terms of the glossary, each with what is said about it on one line."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    return [
        (term, re.sub(r"\s+", " ", entry["text"]).strip())
        for entry in ENTRY.finditer(text)
        for term in re.findall(r"\*\*(.*?)\*\*", entry["terms"])
    ]


def top_level(path: Path) -> set[str]:
    """Names that a file defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return found


@pytest.mark.parametrize(("term", "text"), entries(), ids=lambda value: value[:20])
def test_a_term_lives_where_the_glossary_says(term: str, text: str) -> None:
    address = ADDRESS.search(text)
    assert address is not None, f"{term} has no address"
    path = ROOT / address["file"]
    assert path.is_file(), f"{term}: {path} is gone"
    assert set(re.findall(r"`(\w+)`", address["names"])) <= top_level(path)


def test_every_term_has_one_entry() -> None:
    terms = [term for term, _ in entries()]
    assert len(terms) > 50
    assert sorted(terms) == sorted(set(terms))
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("- ")]) == len([line for line in lines if line[:4] == "- **"])


def names_in(source: str) -> Iterator[str]:
    """Classes and functions of a source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def words(name: str) -> set[str]:
    """The words of a name: ``ShapeHabit`` and ``shape_habit`` are shape and habit."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_retired_words_name_nothing() -> None:
    found = []
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        place = path.relative_to(ROOT)
        for name in (path.stem, *names_in(path.read_text())):
            found += [f"{place}: {name} (say: {RETIRED[word]})" for word in sorted(words(name) & RETIRED.keys())]
    assert found == []


def test_a_retired_word_is_found() -> None:
    source = "class ShapeHabit:\n    def twin_of(self): ...\n\nasync def asked(): ...\ndef masked(): ...\n"
    found = {name: words(name) & RETIRED.keys() for name in names_in(source)}
    assert found == {"ShapeHabit": {"habit"}, "twin_of": {"twin"}, "asked": {"asked"}, "masked": set()}

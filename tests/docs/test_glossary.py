"""The glossary points at what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

ENTRY = re.compile(r"^- (?P<terms>\*\*.*?\*\*): (?P<text>.*?)(?=^- \*\*|^#|\Z)", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"\((?P<names>(?:`\w+`, )*)`(?P<file>[\w/]+\.py)`\)$")


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

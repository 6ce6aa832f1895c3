"""Texts of two origins that most machines have, as windows of tokens: Python's documentation and Debian's manuals.

Texts are cut into documents, and documents into two halves, by a hash of their names: windows that calibrate come of
one half, windows that measure of the other one.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MANUALS = Path("/usr/share/man")
SECTIONS = ("man1", "man5", "man7", "man8")
WORDS = frozenset({".B", ".BI", ".BR", ".I", ".IP", ".IR", ".RB", ".RI", ".SH", ".SS", ".TP"})
"""Macros whose arguments are read."""
LONGEST = 6000
"""Characters of a document at most: no single one makes up much of a text."""


def python_documents() -> Iterator[tuple[str, str]]:
    """Names and documentation of the modules of Python's standard library, a document per top-level module."""
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in {"antigravity", "idlelib", "this", "turtledemo"}:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        yield name, "\n\n".join(_docstrings(module))[:LONGEST]


def _docstrings(module: Any) -> list[str]:
    """Docstrings of a module, its submodules that are imported, and their public functions and classes, each once."""
    modules = [module]
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        modules += [sys.modules[name] for name in (f"{module.__name__}.{found.name}",) if name in sys.modules]
    texts: dict[str, None] = {}
    for part in modules:
        members = [value for name, value in sorted(vars(part).items()) if not name.startswith("_")]
        for value in (part, *members):
            if value is part or (callable(value) and getattr(value, "__module__", "") == part.__name__):
                texts.setdefault(inspect.getdoc(value) or "")
    return [text for text in texts if len(text) > 80]


def debian_documents(folder: Path = MANUALS) -> Iterator[tuple[str, str]]:
    """Names and text of manual pages without the marks of roff; one page of those whose names begin with one word."""
    families: set[str] = set()
    for section in SECTIONS:
        for file in sorted((folder / section).glob("*.gz")):
            family = re.split(r"[-_.:\d]", file.name)[0]
            if family not in families:
                families.add(family)
                text = plain(gzip.decompress(file.read_bytes()).decode("utf-8", "replace"))
                if len(text) > 500:
                    yield file.name, text[:LONGEST]


def plain(roff: str) -> str:
    """Takes the marks of roff out of a manual page: lines of macros but for their words, escapes, changes of font."""
    lines = []
    for line in roff.splitlines():
        if line.startswith((".\\", "'", ".de", ".if", ".ie", ".el", ".nr", ".ds")):
            continue
        words = line
        if line.startswith("."):
            macro, _, words = line.partition(" ")
            words = words.replace('"', "") if macro in WORDS else ""
        words = re.sub(r"\\f[BIRPC\d]|\\f\(..|\\f\[.*?\]|\\[&/,|^]|\\s[+-]?\d", "", words)
        words = (
            words.replace("\\-", "-")
            .replace("\\(aq", "'")
            .replace("\\(bu", "-")
            .replace("\\(em", "-")
            .replace("\\e", "\\")
        )
        if words.strip() or (lines and lines[-1]):
            lines.append(words.rstrip())
    return "\n".join(lines)


def _hash(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


ORIGINS = {"python": python_documents, "debian": debian_documents}


def windows(tokenizer: Any, origin: str, *, held_out: bool, count: int, length: int, seed: int) -> torch.Tensor:
    """Draws windows of one half of a text, none of which overlap.

    Returns:
        Ids ``[count, length]``, int64.
    """
    documents = [text for name, text in ORIGINS[origin]() if (_hash(name) // 8 % 2 == 1) == held_out]
    ids = torch.tensor(tokenizer("\n\n".join(documents))["input_ids"])
    whole = ids[: len(ids) // length * length].view(-1, length)
    if len(whole) < count:
        raise SystemExit(f"{origin}: {len(whole)} windows of {length} tokens, {count} are needed")
    return whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:count]]

"""Names for code that no plugin registers: ``package.module:Class``, or ``path/to/file.py:Class``."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_CODE = re.compile(rf"(?P<place>{_NAME}|.+\.py):(?P<attribute>{_NAME})")


def is_code(name: str) -> bool:
    """Tells whether a name has the form of one for code: a module or a file, a colon, and what is in it."""
    return _CODE.fullmatch(name) is not None


def code_hint(name: str) -> str:
    """Says what lacks in a name of a file or module alone, such as ``scores.py`` or ``scores:``; else empty."""
    place = name.rstrip(":")
    return f"name what is in it: {place}:Class" if place.endswith(".py") or place != name else ""


def place_of(name: str) -> str:
    """Returns the module or the file in a name for code; a module or file alone as it is."""
    found = _CODE.fullmatch(name)
    return name if found is None else found["place"]


def anchored(name: str, folder: Path) -> str:
    """Makes the path of a file (or in a name of something in a file) absolute; every other name stays as it is.

    Args:
        name: A name for code, a module, or a file.
        folder: What a relative path starts from.
    """
    place = place_of(name)
    if not place.endswith(".py"):
        return name
    return f"{(folder / Path(place).expanduser()).resolve()}{name[len(place) :]}"

"""Measurements as lines of JSON in a file, so that a run that was stopped goes on, and how such a script is called."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read(path: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; none where it isn't there, or no path is given."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if path and Path(path).exists() else []


def append(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a file; does nothing without a path."""
    if path:
        with Path(path).open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)


def show(row: Mapping[str, Any]) -> None:
    """Prints a row as it was measured."""
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def parser(text: str | None, targets: Sequence[float]) -> argparse.ArgumentParser:
    """Makes the arguments of a script that cuts to targets with seeds: ``--seeds --targets --json --table``.

    Args:
        text: What the script does.
        targets: Those without ``--targets``.
    """
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--targets", type=float, nargs="+", default=list(targets))
    found.add_argument("--json", default="", help="file to which the measurements are appended")
    found.add_argument("--table", default="", help="print the table of such a file")
    return found

"""Counts what one has to hold in the head: files that one call enters, files per folder, lines, names of the doors.

python benchmarks/house.py
python benchmarks/house.py --files      names the files that `prune(ratio=0.5)` of a five-layer net enters
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import prunekit as pk

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("prunekit", "prunekit_core", "prunekit_plugins")


def five_layers() -> nn.Module:
    """A net of five layers, as a newcomer would try it."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(4608, 10)
    ).eval()


def entered(call: Callable[[], Any]) -> Counter[str]:
    """Runs a call, and counts the functions of each file of prunekit that it enters."""
    functions: set[tuple[str, str, int]] = set()

    def profile(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and any(f"/{package}/" in code.co_filename for package in PACKAGES):
            functions.add((code.co_filename, code.co_name, code.co_firstlineno))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Counter(str(Path(file).relative_to(ROOT)) for file, name, _ in functions if name != "<module>")


def lines(folder: Path) -> int:
    """Lines of all Python files below a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="name the files that are entered")
    args = parser.parse_args()
    x = torch.randn(1, 3, 16, 16)
    pk.default_registry()
    found = entered(lambda: pk.prune(five_layers(), x, ratio=0.5))
    print(f"prune(ratio=0.5) enters {len(found)} files and {sum(found.values())} functions")
    if args.files:
        for file, functions in sorted(found.items()):
            print(f"  {file:<50} {functions:>3} functions")
    for package in PACKAGES:
        folders = Counter(path.parent for path in (ROOT / package).rglob("*.py") if path.stem != "__init__")
        most = ", ".join(f"{folder.name} {size}" for folder, size in folders.most_common(4))
        print(f"{package}: {lines(ROOT / package):,} lines; files in the fullest folders: {most}")


if __name__ == "__main__":
    main()

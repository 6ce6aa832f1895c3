"""Every example runs, in a process of its own, as short as can be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

EXAMPLES = ROOT / "examples"
SHORT = {
    "conv_net.py": (
        ["--epochs", "1"],
        r"pruned: 4 groups\n(.*\n)+accuracy: .* trained, .* after the cut, .* fine-tuned",
    ),
    "transformer.py": (["--epochs", "1"], r"#heads: 4 -> [123]\n(.*\n)+exact: (.*\n)+loaded from the file: the same"),
    "own_criterion.py": (["--epochs", "1", "--steps", "2"], r"step 2 of 2: .* parameters(.*\n)+pruned: 4 groups"),
}
"""Arguments of each example, and what it prints."""
SHARED = {"digits.py"}


def test_every_example_is_run_and_listed() -> None:
    found = {path.name for path in EXAMPLES.glob("*.py")}
    assert found == SHORT.keys() | SHARED
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    arguments, expected = SHORT[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []

"""Ctrl-C at several moments of a real process: exit code 130, one line, and no file is left half done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import prunekit as pk
from tests.cli.interrupted import MOMENTS
from tests.cli.toys import Perceptron

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_that_is_interrupted(moment: str, tmp_path: Path) -> None:
    folder, mark = tmp_path / "folder", tmp_path / "mark"
    folder.mkdir()
    out = folder / "small.safetensors"
    out.write_bytes(b"what was there before")
    command = ["prune", "tests.cli.toys:perceptron", "--input", "1,4", "--out", str(out), "--plan", f"{folder}/p.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.interrupted", moment, str(mark), *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, "")
    assert complaints.count("\n") == 1
    assert complaints.startswith("interrupted")
    assert [path.name for path in folder.iterdir()] == ["small.safetensors"]
    if moment == "renaming":
        model = pk.load(Perceptron(), out)
        assert tuple(model(torch.randn(2, 4)).shape) == (2, 3)
    else:
        assert out.read_bytes() == b"what was there before"

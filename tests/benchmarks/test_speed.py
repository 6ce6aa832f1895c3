"""A short run of the speed benchmark: ratios of processor time to work of PyTorch in the same process, no time alone.

The bounds leave room for what other programs do to caches; the tables in docs/speed.md are from a quiet machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).resolve().parents[2] / "benchmarks" / "worker.py"


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v2"])
def lines(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    command = [sys.executable, WORKER, "prunekit", request.param, "--repeats", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["kind"] for line in found] == ["step"] * 7 + ["application", "forward"]
    return found


def test_an_analysis_takes_a_few_forwards_on_fakes(lines: list[dict[str, Any]]) -> None:
    analysis = statistics.median(line["analysis"] for line in lines[1:-2])  # the first one fills caches
    assert analysis <= 3 * lines[-1]["seconds"]


def test_an_application_takes_a_few_copies(lines: list[dict[str, Any]]) -> None:
    application = lines[-2]
    assert application["extra_bytes"] <= application["made_bytes"] + application["largest_bytes"]
    assert application["seconds"] <= 5 * application["copy_seconds"]

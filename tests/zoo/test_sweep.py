"""The sweep's verdicts, its table, and that its lists leave out nothing without a reason."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
import transformers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULT: dict[str, Any] = {
    "family": "torchvision",
    "model": "resnet18",
    "operations": 158,
    "groups": 12,
    "prunable": 0.9,
    "left": 0.26,
    "shapes_kept": True,
    "backward": True,
    "exact": True,
    "error": 3e-7,
    "single": [{"group": "conv1", "exact": True, "error": 2e-6}],
}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "works"),
        ({"prunable": 0.4}, "little"),
        ({"exact": False}, "wrong"),
        ({"exact": False, "constants": ["a constant of aten::div.Tensor follows a size"]}, "told"),
        ({"exact": False, "random": "the program is random (it draws in aten::dropout)"}, "told"),
        ({"single": [{"group": "conv1", "exact": False, "error": 0.5}]}, "wrong"),
        ({"backward": False}, "fails"),
        ({"shapes_kept": False}, "fails"),
        ({"failed": "longer than 300 s"}, "fails"),
        ({"exact": None}, "fails"),
        ({"ran": False, "failed": "ImportError: no such package"}, "unbuilt"),
        ({"failed": "RecordingError", "refused": "why: it is scripted", "refused_for": "it is scripted"}, "refused"),
        ({"failed": "RecordingError", "refused": "why: something else", "refused_for": "it is scripted"}, "fails"),
    ],
)
def test_verdicts(zoo: ModuleType, change: dict[str, Any], expected: str) -> None:
    assert zoo.verdict({**RESULT, **change}) == expected


def test_the_table_names_the_reason_and_counts(zoo: ModuleType) -> None:
    failed = {"family": "torchvision", "model": "aardvark", "failed": "longer | than 300 s"}
    lines = zoo.table([RESULT, failed]).splitlines()
    assert lines[2].startswith("| torchvision:aardvark | fails |")
    assert lines[2].endswith("| longer / than 300 s |")
    assert "| 90% | 26% | 2e-06 |" in lines[3]
    assert lines[-1] == "torchvision: 2 models, 1 fails (50%), 1 works (50%)."


def test_every_model_of_torchvision_is_there(zoo: ModuleType) -> None:
    assert zoo.zoo_models.torchvision_names() == torchvision.models.list_models()


def test_one_model_in_a_process_of_its_own() -> None:
    command = [sys.executable, str(BENCHMARKS / "zoo_worker.py"), "torchvision", "squeezenet1_1", "--groups", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    result: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        result |= json.loads(line)
    assert result["exact"]
    assert result["backward"]
    assert result["shapes_kept"]
    assert result["prunable"] > 0.95
    assert [group["exact"] for group in result["single"]] == [True]


@pytest.fixture
def model_types(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("model_types")


def test_every_model_type_of_transformers_is_built_or_has_a_reason(model_types: ModuleType) -> None:
    exceptions = importlib.import_module("model_types.exceptions")
    if transformers.__version__ != exceptions.VERSION:
        pytest.skip(f"the list is of transformers {exceptions.VERSION}")
    every, built, parts = set(model_types.all_names()), set(model_types.names()), set(model_types.parts())
    assert every == built | parts | set(exceptions.LEFT_OUT)
    assert built.isdisjoint(exceptions.LEFT_OUT)
    assert len(built) > 350


@pytest.mark.parametrize("name", ["llama", "swin", "whisper", "qwen2_vl", "mamba", "time_series_transformer"])
def test_a_model_type_is_built_tiny_and_runs(model_types: ModuleType, name: str) -> None:
    if transformers.__version__ != importlib.import_module("model_types.exceptions").VERSION:
        pytest.skip("types change between releases")
    model, inputs, _ = model_types.build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) < 4e6
    with torch.no_grad():
        outputs = model(**inputs)
    assert all(tensor.isfinite().all() for tensor in outputs.values() if isinstance(tensor, torch.Tensor))


def test_the_ecosystems_are_listed_without_their_packages(zoo: ModuleType) -> None:
    families = zoo.zoo_models.ECOSYSTEMS
    assert len(families) >= 17
    assert sum(len(family.names()) for family in families.values()) >= 120
    requirements = (BENCHMARKS / "ecosystems" / "requirements.txt").read_text().lower().replace("-", "_")
    others = {"torch_geometric", "open_clip"}
    assert [name for name in families if name not in requirements and name not in others] == []

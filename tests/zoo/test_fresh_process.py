"""Save, load in a fresh process, compare: identical bits, for every family."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunekit as pk
from tests.zoo.families import FAMILIES, build, outputs_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore")  # of timm and transformers, while they are imported
def test_loaded_elsewhere_every_family_computes_the_same_bits(tmp_path: Path) -> None:
    expected = {}
    for number, name in enumerate(FAMILIES):
        model, inputs = build(name, seed=0)
        dense = outputs_of(model, inputs)
        result = pk.prune(model, inputs)
        assert result.plan.cuts, name
        # every other one in shards
        shards = None if number % 2 else 200_000
        place = tmp_path / name
        place.mkdir()
        target = place if shards else place / "model.safetensors"
        pk.save(model, target, plan=result.plan, protocol=result.protocol, max_shard_size=shards)
        expected[name] = outputs_of(model, inputs)
        assert expected[name]
        assert any(not torch.equal(value, dense[key]) for key, value in expected[name].items()), name
    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo.families", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, outputs in expected.items():
        found = safetensors.torch.load_file(tmp_path / name / "outputs.safetensors")
        assert found.keys() == outputs.keys(), name
        assert all(torch.equal(found[key], value) for key, value in outputs.items()), name

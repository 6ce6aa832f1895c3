"""Large models take little memory: planned on the meta device, pruned on disk piece by piece."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prunekit as pk
from prunekit_plugins.checkpoints import tensorfile
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from tests.core.test_checkpoint import seeded
from tests.core.test_conversion import TOKENS, planned
from tests.models import Encoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_billions_of_parameters_are_planned_in_little_memory() -> None:
    """Five billion parameters, 20 GB in float32: no tensor as large as one of theirs is ever made."""
    command = [sys.executable, str(BENCHMARKS / "large_model.py"), "--work", "--layers", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["before"] > 5e9
    assert found["after"] < 0.4 * found["before"]
    assert found["peak"] - found["peak_before"] < 0.2e9


def test_a_checkpoint_is_pruned_in_room_for_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is read once, in pieces, and all pieces into the same memory."""
    model = seeded(Encoder)
    pk.save(model, tmp_path / "dense.safetensors")
    plan = planned(model, TOKENS)
    monkeypatch.setattr(tensorfile, "_PIECE", 512)
    sizes, places, read = [], set(), TensorFile.read

    def watched(*arguments: Any, **options: Any) -> Any:
        piece = read(*arguments, **options)
        sizes.append(piece.nbytes)
        places.add(piece.untyped_storage().data_ptr())
        return piece

    monkeypatch.setattr(TensorFile, "read", watched)
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    assert sum(sizes) == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert max(sizes) <= 512
    assert len(places) == 1

"""Scores of a model on the meta device, from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_plugins.importance import FPGMImportance, GroupMagnitudeImportance, LAMPImportance
from tests.core.test_checkpoint import IDS, Rotary, seeded
from tests.models import Encoder

TOKENS = torch.randn(2, 6, 10)


def empty_encoder() -> torch.nn.Module:
    with torch.device("meta"):
        return Encoder().eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", [GroupMagnitudeImportance, LAMPImportance, FPGMImportance])
@pytest.mark.parametrize("shards", [None, 4000])
def test_scores_from_files_are_those_of_the_model(
    make: type[GroupMagnitudeImportance], shards: int | None, tmp_path: Path
) -> None:
    model = seeded(Encoder)
    place = tmp_path / ("dense" if shards else "dense.safetensors")
    pk.save(model, place, max_shard_size=shards)
    expected = pk.BasePruner(model, TOKENS, make()).plan()
    pruner = pk.BasePruner(empty_encoder(), TOKENS.to("meta"), make(), weights=place)
    assert pruner.plan() == expected
    # steps go on from the values that are left, also where rows were rescaled
    real = pk.BasePruner(model, TOKENS, make(), iterative_steps=2)
    disk = pk.BasePruner(empty_encoder(), TOKENS.to("meta"), make(), iterative_steps=2, weights=place)
    for _ in range(2):
        real.step()
        disk.step()
    assert real.graph.applied.rescales
    assert real.graph.applied == disk.graph.applied
    pk.prune_checkpoint(place, tmp_path / "small", disk.graph.applied, max_shard_size="1MB")
    # the model was rescaled in two steps, the file in one
    torch.testing.assert_close(pk.load(seeded(Encoder, 1), tmp_path / "small")(TOKENS), model(TOKENS))


def test_any_name_of_a_shared_tensor_is_read(tmp_path: Path) -> None:
    model = seeded(Rotary)
    expected = pk.BasePruner(model, IDS).plan()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "embed.weight"}
    safetensors.torch.save_file(state, tmp_path / "dense.safetensors")
    with torch.device("meta"):
        empty = Rotary().eval()
        ids = torch.zeros(2, 5, dtype=torch.long)
    assert pk.BasePruner(empty, ids, weights=tmp_path / "dense.safetensors").plan() == expected
    assert pk.prune(empty, ids, weights=str(tmp_path / "dense.safetensors")).plan == expected


def test_what_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(pk.ArgumentError, match="A model on the meta device has no values to score"):
        pk.prune(empty_encoder(), TOKENS.to("meta"))
    pk.save(seeded(Rotary), tmp_path / "other.safetensors")
    with pytest.raises(pk.CheckpointError, match="The checkpoint is for another model"):
        pk.prune(empty_encoder(), TOKENS.to("meta"), weights=tmp_path / "other.safetensors")
    pk.save(seeded(Encoder), tmp_path / "dense.safetensors")
    with pytest.raises(pk.ArgumentError, match="Weights on disk are for a model on the meta device"):
        pk.prune(seeded(Encoder), TOKENS, weights=tmp_path / "dense.safetensors")

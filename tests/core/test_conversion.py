"""Plans applied to checkpoints on disk give the files that pruned models are saved as."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.checkpoints import tensorfile
from tests.core.test_checkpoint import IDS, INDEX, Rotary, X, first_shard, seeded
from tests.models import Attention, Encoder, Residual

TOKENS = torch.randn(2, 6, 10)
EQUAL = torch.randn(2, 5, 16)

CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "residual": (Residual, X),
    "encoder": (Encoder, TOKENS),
    "tied": (Rotary, IDS),
    "attention": (lambda: nn.Sequential(Attention(), nn.Linear(16, 16), Attention()), EQUAL),
    "swapped": (lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), EQUAL),
}


def dense_file(model: nn.Module, path: Path) -> None:
    """What anybody's training code writes: every tensor of the state dict once."""
    safetensors.torch.save_model(model, str(path))


def planned(model: nn.Module, inputs: torch.Tensor) -> pk.Plan:
    return pk.BasePruner(model, inputs).plan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_file_is_that_of_the_pruned_model(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, inputs = CASES[name]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    model = seeded(make).to(dtype)
    dense_file(model, tmp_path / "dense.safetensors")
    plan = planned(model, inputs)
    assert plan.rescales or name not in ("encoder", "attention")
    plan.apply(model)
    pk.save(model, tmp_path / "expected.safetensors", plan=plan)
    monkeypatch.setattr(tensorfile, "_PIECE", 200)  # many pieces, whose borders lie within heads
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    assert (tmp_path / "small.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    fresh = seeded(make, 1).to(dtype)
    assert torch.equal(pk.load(fresh, tmp_path / "small.safetensors")(inputs), model(inputs))


def test_shards_in_and_shards_out(tmp_path: Path) -> None:
    model = seeded(Encoder)
    pk.save(model, tmp_path / "dense", max_shard_size="4KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 3
    plan = planned(model, TOKENS)
    steps: list[tuple[int, int]] = []
    pk.prune_checkpoint(
        tmp_path / "dense", tmp_path / "small", plan, max_shard_size=3000, progress=lambda *at: steps.append(at)
    )
    total = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)
    plan.apply(model)
    pk.save(model, tmp_path / "expected", plan=plan, max_shard_size=3000)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == expected
    assert len(expected) > 3
    # a folder without a size gets files of 5 GB
    pk.prune_checkpoint(tmp_path / "dense" / INDEX, tmp_path / "one", plan)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]


def test_a_pruned_checkpoint_is_pruned_further(tmp_path: Path) -> None:
    model = seeded(Encoder)
    first = pk.prune(model, TOKENS, 0.25).plan
    pk.save(model, tmp_path / "first.safetensors", plan=first)
    later = pk.prune(model, TOKENS, 0.5).plan
    pk.save(model, tmp_path / "expected.safetensors", plan=first.then(later))
    pk.prune_checkpoint(tmp_path / "first.safetensors", tmp_path / "second.safetensors", later)
    assert (tmp_path / "second.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    with pytest.raises(pk.PlanError):
        pk.prune_checkpoint(tmp_path / "second.safetensors", tmp_path / "third.safetensors", first)
    assert not (tmp_path / "third.safetensors").exists()


def test_every_name_of_a_shared_tensor_is_pruned(tmp_path: Path) -> None:
    model = seeded(Rotary)
    plan = planned(model, IDS)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan.apply(model)
    for names in (("head.weight",), ("embed.weight",), ("embed.weight", "head.weight")):
        kept = {n: t for n, t in state.items() if n not in ("embed.weight", "head.weight") or n in names}
        safetensors.torch.save_file(kept, tmp_path / "dense.safetensors")
        pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
        found = safetensors.torch.load_file(tmp_path / "small.safetensors")
        assert sorted(found) == sorted(kept)
        assert all(torch.equal(found[name], model.head.weight) for name in names)
        assert torch.equal(pk.load(seeded(Rotary, 1), tmp_path / "small.safetensors")(IDS), model(IDS))


def test_bytes_of_any_dtype_are_selected(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    plan = planned(model, torch.randn(2, 6))
    kept = list(plan.kept["0"])
    raw = {name: torch.randint(0, 100, t.shape, dtype=torch.uint8) for name, t in model.state_dict().items()}
    quarter = {name: value.view(torch.float8_e4m3fn) for name, value in raw.items()}
    safetensors.torch.save_file(quarter, tmp_path / "dense.safetensors")
    pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    found = safetensors.torch.load_file(tmp_path / "small.safetensors")
    assert found["0.weight"].dtype is torch.float8_e4m3fn
    assert torch.equal(found["0.weight"].view(torch.uint8), raw["0.weight"][kept])
    assert torch.equal(found["2.weight"].view(torch.uint8), raw["2.weight"][:, kept])
    assert torch.equal(found["2.bias"].view(torch.uint8), raw["2.bias"])


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    model = seeded(Encoder)
    plan = planned(model, TOKENS)
    state = dict(model.state_dict())
    name = next(rescale.parameter for rescale in plan.rescales)
    cases = {
        "embed.weight is missing": {k: v for k, v in state.items() if k != "embed.weight"},
        "embed.weight has shape": {**state, "embed.weight": torch.zeros(17, 10)},
        f"{name} has no rows of real numbers": {**state, name: torch.zeros(state[name].shape, dtype=torch.int32)},
    }
    for message, tensors in cases.items():
        safetensors.torch.save_file(tensors, tmp_path / "dense.safetensors")
        with pytest.raises(pk.CheckpointError, match="The checkpoint is for another model") as caught:
            pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
        assert message in caught.value.why
    safetensors.torch.save_file(state, tmp_path / "dense.safetensors")
    with pytest.raises(pk.CheckpointError, match="The destination is the source"):
        pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "dense.safetensors", plan)
    (tmp_path / "dense.safetensors").write_bytes(b"12345678")
    with pytest.raises(pk.CheckpointError, match="corrupt"):
        pk.prune_checkpoint(tmp_path / "dense.safetensors", tmp_path / "small.safetensors", plan)
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    model = seeded(Encoder)
    pk.save(model, tmp_path / "dense", max_shard_size="4KB")
    plan = planned(model, TOKENS)

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            signal.raise_signal(signal.SIGINT)

    for destination in ("small", "small.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            pk.prune_checkpoint(tmp_path / "dense", tmp_path / destination, plan, progress=interrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_source_that_loses_a_shard_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    model = seeded(Encoder)
    pk.save(model, tmp_path / "dense", max_shard_size="4KB")
    plan = planned(model, TOKENS)

    def cut(done: int, total: int) -> None:
        path = first_shard(tmp_path / "dense")
        path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(pk.CheckpointError, match="corrupt"):
        pk.prune_checkpoint(tmp_path / "dense", tmp_path / "small", plan, progress=cut)
    assert not (tmp_path / "small").exists()

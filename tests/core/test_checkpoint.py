"""Checkpoints: what was saved comes back bit for bit, in one file or many, and nothing else is taken for it."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_core import files as files_module
from prunekit_core.files import Files
from prunekit_plugins.checkpoints import shards as shards_module, tensorfile as tensorfile_module
from prunekit_plugins.checkpoints.shards import Weights, parse_size
from prunekit_plugins.checkpoints.tensorfile import DTYPES, Stored, TensorFile, file_order, write_tensors
from tests.models import Chain, Encoder, Residual

X = torch.randn(2, 3, 8, 8)
INDEX = "model.safetensors.index.json"


class Rotary(nn.Module):
    """A tied embedding and head, a non-persistent buffer that shrinks with the width, and a counter without dims."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.register_buffer("scale", torch.arange(1.0, 9.0), persistent=False)
        self.register_buffer("seen", torch.tensor(3))
        self.up = nn.Linear(8, 20)
        self.down = nn.Linear(20, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) * self.scale
        return self.head(x + self.down(self.up(x).relu()))


IDS = torch.arange(10).view(2, 5)


def pruned(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, pk.PruneResult]:
    result = pk.prune(model.eval(), inputs)
    return model, result


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def write_sharded(folder: Path, seed: int = 0, size: int | str = 1000) -> tuple[nn.Module, pk.PruneResult]:
    model, result = pruned(seeded(Residual, seed), X)
    pk.save(model, folder, plan=result.plan, protocol=result.protocol, max_shard_size=size)
    return model, result


# -- round trips


def test_shards_have_the_layout_of_hugging_face(tmp_path: Path) -> None:
    model, result = write_sharded(tmp_path / "small")
    index = json.loads((tmp_path / "small" / INDEX).read_text())
    state = model.state_dict()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
    assert sorted(index["weight_map"]) == sorted(state)
    names = sorted(set(index["weight_map"].values()))
    count = len(names)
    assert count > 2
    assert names == [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted([*names, INDEX])
    joined: dict[str, torch.Tensor] = {}
    for name in names:  # read by the library, not by us
        part = safetensors.torch.load_file(tmp_path / "small" / name)
        assert sum(t.numel() * t.element_size() for t in part.values()) <= 1000 or len(part) == 1
        assert {index["weight_map"][tensor] for tensor in part} == {name}
        joined.update(part)
    assert all(torch.equal(joined[name], state[name]) for name in state)
    for place in (tmp_path / "small", tmp_path / "small" / INDEX):
        loaded = pk.load(seeded(Residual, 1), place)
        assert torch.equal(loaded(X), model(X))
        assert pk.read_plan(place) == result.plan
        assert pk.read_protocol(place) == result.protocol


def test_what_fits_in_one_file_of_a_folder_has_no_index(tmp_path: Path) -> None:
    model, _ = write_sharded(tmp_path, size="1MB")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert torch.equal(pk.load(seeded(Residual, 1), tmp_path)(X), model(X))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sharded(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_files_equal_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a.weight": torch.randn(2, 3).t(),
        "wide": torch.randn(4, dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "counter": torch.tensor(7),
        'a "quoted" name': torch.arange(3).to(torch.bfloat16),
    }
    stored = {name: Stored(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_tensors(tmp_path / "ours", stored, {"format": "pt"}, lambda name: [tensors[name]])
    data = {name: t.contiguous() for name, t in tensors.items()}
    safetensors.torch.save_file(data, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    file = TensorFile(tmp_path / "theirs")
    assert list(file.tensors) == file_order(stored)
    assert all(torch.equal(file.read(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", sorted(DTYPES.values(), key=str), ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    value = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    write_tensors(tmp_path / "file", {"x": Stored(dtype, tuple(value.shape))}, {}, lambda name: [value[:2], value[2:]])
    found = TensorFile(tmp_path / "file").read("x")
    assert found.dtype is dtype
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["x"].view(torch.uint8), value.view(torch.uint8))
    rows = TensorFile(tmp_path / "file").read("x", (1, 3))
    assert torch.equal(rows.view(torch.uint8), value[1:3].view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_half_and_double_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model, result = pruned(seeded(Residual).to(dtype), X.to(dtype))
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    loaded = pk.load(seeded(Residual, 1).to(dtype), tmp_path / "small.safetensors")
    assert torch.equal(loaded(X.to(dtype)), model(X.to(dtype)))
    # a model of another dtype keeps its own
    single = pk.load(seeded(Residual, 1), tmp_path / "small.safetensors")
    assert single.conv1.weight.dtype is torch.float32
    assert torch.equal(single.conv1.weight, model.conv1.weight.float())


def test_tied_weights_are_stored_once_under_any_name(tmp_path: Path) -> None:
    model, result = pruned(seeded(Rotary), IDS)
    assert model.head.weight is model.embed.weight
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    stored = TensorFile(tmp_path / "small.safetensors")
    assert sorted(stored.tensors) == ["down.bias", "down.weight", "embed.weight", "seen", "up.bias", "up.weight"]
    loaded = pk.load(seeded(Rotary, 1), tmp_path / "small.safetensors")
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.scale.tolist() == model.scale.tolist()
    assert torch.equal(loaded(IDS), model(IDS))
    # another library may have kept the other name, or both
    for names, good in ((("head.weight",), True), (("head.weight", "embed.weight"), True), ((), False)):
        tensors = {n: stored.read(n) for n in stored.tensors if n != "embed.weight"}
        tensors.update({name: model.embed.weight.detach().clone() for name in names})
        safetensors.torch.save_file(tensors, tmp_path / "other.safetensors", stored.metadata)
        if good:
            assert torch.equal(pk.load(seeded(Rotary, 1), tmp_path / "other.safetensors")(IDS), model(IDS))
        else:
            with pytest.raises(pk.CheckpointError, match=r"embed\.weight is missing"):
                pk.load(seeded(Rotary, 1), tmp_path / "other.safetensors")
    tensors["embed.weight"], tensors["head.weight"] = torch.zeros(11, 4), torch.ones(11, 4)
    safetensors.torch.save_file(tensors, tmp_path / "other.safetensors", stored.metadata)
    with pytest.raises(pk.CheckpointError, match="are one tensor in the model, and differ"):
        pk.load(seeded(Rotary, 1), tmp_path / "other.safetensors")


def test_a_model_on_the_meta_device_is_filled(tmp_path: Path) -> None:
    model, _ = write_sharded(tmp_path)
    with torch.device("meta"):
        fresh = Residual().eval()
    fresh.conv1.weight.requires_grad_(False)
    fresh.conv1.weight.mark = 5
    loaded = pk.load(fresh, tmp_path)
    assert torch.equal(loaded(X), model(X))
    assert all(isinstance(p, nn.Parameter) for p in loaded.parameters())
    assert [p.requires_grad for p in loaded.parameters()] == [False, *[True] * (len(list(loaded.parameters())) - 1)]
    assert loaded.conv1.weight.mark == 5
    with torch.device("meta"):
        half = Residual().eval().bfloat16()
    assert pk.load(half, tmp_path).conv1.weight.dtype is torch.bfloat16


def test_buffers_on_the_meta_device_that_no_file_holds_are_told(tmp_path: Path) -> None:
    model, result = pruned(seeded(Rotary), IDS)
    pk.save(model, tmp_path / "x.safetensors", plan=result.plan)
    with torch.device("meta"):
        fresh = Rotary().eval()
    with pytest.raises(pk.CheckpointError, match="A buffer on the meta device is not in the checkpoint") as caught:
        pk.load(fresh, tmp_path / "x.safetensors")
    assert caught.value.where == "scale"
    assert tuple(fresh.up.weight.shape) == (20, 8)
    fresh.scale = torch.arange(1.0, 9.0)
    loaded = pk.load(fresh, tmp_path / "x.safetensors")
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(IDS), model(IDS))


def test_prunings_after_one_another_are_saved_as_one(tmp_path: Path) -> None:
    model = seeded(Encoder)
    x = torch.randn(2, 6, 10)
    first = pk.prune(model, x, 0.25)
    pk.save(model, tmp_path / "first.safetensors", plan=first.plan)
    # somewhere else: load, prune again, save again
    again = pk.load(seeded(Encoder, 1), tmp_path / "first.safetensors")
    second = pk.prune(again, x, 0.5)
    whole = pk.read_plan(tmp_path / "first.safetensors").then(second.plan)
    pk.save(again, tmp_path / "second.safetensors", plan=whole)
    assert torch.equal(pk.load(seeded(Encoder, 2), tmp_path / "second.safetensors")(x), again(x))
    pruner = pk.BasePruner(seeded(Encoder), x, pruning_ratio=0.5, iterative_steps=2)
    pruner.step()
    pruner.step()
    pk.save(pruner.model, tmp_path / "steps.safetensors", plan=pruner.graph.applied)
    assert torch.equal(pk.load(seeded(Encoder, 2), tmp_path / "steps.safetensors")(x), pruner.model(x))


def test_a_plan_has_a_file_of_its_own(tmp_path: Path) -> None:
    plan = pruned(seeded(Rotary), IDS)[1].plan
    plan.save(tmp_path / "plan.json")
    assert pk.Plan.load(tmp_path / "plan.json") == plan == pk.read_plan(tmp_path / "plan.json")
    assert {cut.parameter: (cut.aliases, cut.persistent) for cut in plan.parameters} == {
        "embed.weight": (("head.weight",), True),
        "up.weight": ((), True),
        "up.bias": ((), True),
        "down.weight": ((), True),
        "down.bias": ((), True),
        "scale": ((), False),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    for text, headline in (("{", "The text is not a plan."), ('{"format": 1}', "The plan is malformed.")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(pk.PlanError) as caught:
            pk.Plan.load(tmp_path / "bad.json")
        assert (caught.value.headline, caught.value.where) == (headline, str(tmp_path / "bad.json"))
    with pytest.raises(pk.PlanError, match="The file of the plan can't be read"):
        pk.Plan.load(tmp_path / "nosuch.json")
    with pytest.raises(pk.PlanError, match=r"prunekit\.read_plan reads the plan that lies in a folder"):
        pk.Plan.load(tmp_path)


# -- what is refused


@attrs.frozen
class Damage:
    """Something that happens to a folder of shards, and what is said about it."""

    do: Callable[[Path], object]
    headline: str


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def edit_index(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads((folder / INDEX).read_text())
    change(data)
    (folder / INDEX).write_text(json.dumps(data))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def shard_of_another_save(folder: Path) -> None:
    write_sharded(folder.parent / "other", seed=7)
    other = folder.parent / "other" / first_shard(folder).name
    first_shard(folder).write_bytes(other.read_bytes())


def without_metadata(folder: Path) -> None:
    path = first_shard(folder)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt"})


def a_moved_tensor(folder: Path) -> None:
    def change(data: dict[str, object]) -> None:
        places = data["weight_map"]
        assert isinstance(places, dict)
        name = next(iter(places))
        places[name] = sorted(set(places.values()) - {places[name]})[0]

    edit_index(folder, change)


DAMAGES = {
    "missing": Damage(lambda f: first_shard(f).unlink(), "A shard of the checkpoint is missing."),
    "truncated": Damage(lambda f: cut_short(first_shard(f)), "The file is corrupt or no safetensors file."),
    "other save": Damage(shard_of_another_save, "A shard belongs to another save."),
    "foreign shard": Damage(without_metadata, "A shard belongs to another save."),
    "moved": Damage(a_moved_tensor, "A shard and the index contradict each other."),
    "no json": Damage(lambda f: cut_short(f / INDEX), "The index of the checkpoint can't be read."),
    "a list": Damage(lambda f: (f / INDEX).write_text("[]"), "The index of the checkpoint can't be read."),
    "a path": Damage(
        lambda f: edit_index(f, lambda d: d.update(weight_map={"conv1.weight": "../x.safetensors"})),
        "The index of the checkpoint can't be read.",
    ),
    "foreign": Damage(lambda f: edit_index(f, lambda d: d.update(metadata={})), "A shard belongs to another save."),
    "no plan": Damage(
        lambda f: edit_index(f, lambda d: d["metadata"].pop("plan")),  # type: ignore[attr-defined]
        "The file holds no readable plan.",
    ),
    "no index": Damage(lambda f: (f / INDEX).unlink(), "The folder holds no checkpoint."),
    "two": Damage(
        lambda f: (f / "model.safetensors").write_bytes(first_shard(f).read_bytes()),
        "The folder holds two checkpoints.",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_folders_are_refused(damage: Damage, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    write_sharded(folder)
    damage.do(folder)
    model = seeded(Residual, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.CheckpointError) as caught:
        pk.load(model, folder)
    assert caught.value.headline == damage.headline
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert vars(model.conv1)["out_channels"] == 8


def test_one_shard_alone_is_no_checkpoint(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    with pytest.raises(pk.CheckpointError, match="The file is one shard of a checkpoint"):
        pk.load(seeded(Residual, 1), first_shard(tmp_path))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(seeded(Residual).state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(print))
    for place in (tmp_path / "model.pt", tmp_path):
        with pytest.raises(pk.CheckpointError, match="corrupt or no safetensors file"):
            pk.load(seeded(Residual), place)


def test_whole_numbers_are_not_taken_for_fractions_cut_off(tmp_path: Path) -> None:
    model = seeded(lambda: Chain(4, 6, 2))
    model.register_buffer("count", torch.tensor([1.5]))
    pk.save(model, tmp_path / "x.safetensors")
    fresh = seeded(lambda: Chain(4, 6, 2), 1)
    fresh.register_buffer("count", torch.tensor([1]))
    with pytest.raises(pk.CheckpointError, match=r"count is of torch\.float32, not of torch\.int64"):
        pk.load(fresh, tmp_path / "x.safetensors")


def test_what_can_not_be_written_is_told(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = Residual()
    with pytest.raises(pk.CheckpointError, match="A tensor of the model can't be written"):
        pk.save(empty, tmp_path / "x.safetensors")
    model = seeded(Residual)
    with pytest.raises(pk.CheckpointError, match="There is no such folder"):
        pk.save(model, tmp_path / "nosuch" / "x.safetensors")
    with pytest.raises(pk.CheckpointError, match="A folder was named where a file is written"):
        pk.save(model, tmp_path)
    model.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(pk.CheckpointError, match="A dtype can't be stored"):
        pk.save(model, tmp_path / "x.safetensors")
    with pytest.raises(pk.CheckpointError, match="A dtype can't be stored"):
        pk.save(model, tmp_path / "folder", max_shard_size=100)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_shards() -> None:
    sizes = {"5GB": 5 * 10**9, "1.5 kb": 1500, "2MiB": 2 * 2**20, "100": 100, "7B": 7, 12: 12}
    assert {size: parse_size(size) for size in sizes} == sizes
    for wrong in ("5 apples", "", 0, -1, True, "KiB", 1.5, None):
        with pytest.raises(pk.ArgumentError, match="max_shard_size must be"):
            parse_size(wrong)  # type: ignore[arg-type]


# -- what is replaced, and when


def test_another_save_replaces_all_files_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for size, seed in ((1000, 0), (600, 1), ("1MB", 2), (1000, 3), (1000, 4)):
        model, _ = write_sharded(tmp_path, seed, size)
        assert torch.equal(pk.load(seeded(Residual, 9), tmp_path)(X), model(X))
        held = {path.name for path in tmp_path.iterdir()}
        assert held == {"config.json", *Weights(tmp_path).files, *([INDEX] if size != "1MB" else [])}


def test_only_shards_go_away_with_the_save_before(tmp_path: Path) -> None:
    """An index from elsewhere may name any file of its folder as a shard."""
    (tmp_path / "train.py").write_text("mine")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"prunekit": "1"}, "weight_map": {"x": "train.py"}}))
    write_sharded(tmp_path, size="1MB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "train.py"]
    assert (tmp_path / "train.py").read_text() == "mine"


def test_weights_of_others_are_not_replaced(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(pk.CheckpointError, match="The folder holds weights that prunekit didn't write"):
        write_sharded(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_writing_leaves_the_save_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = write_sharded(tmp_path / "small")
    held = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    pieces = iter(range(5))
    original = Stored.pieces

    def interrupted(self: Stored) -> list[tuple[int, int]]:
        if next(pieces, None) is None:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(Stored, "pieces", interrupted)
    for folder in ("small", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_sharded(tmp_path / folder, seed=5)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == held
    assert torch.equal(pk.load(seeded(Residual, 1), tmp_path / "small")(X), before(X))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_renaming_is_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, iter(range(2))

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if next(calls, None) == 1:
            signal.raise_signal(signal.SIGINT)

    (tmp_path / "old").write_text("old")
    with Files(tmp_path) as files:
        for name in "abc":
            files.new(name).write_text(name)
        files.drop("old")
        monkeypatch.setattr(files_module.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.commit()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in "abc"}


# -- what the system says, and what it keeps


def test_permissions_and_links_stay_and_new_files_get_the_umask(tmp_path: Path) -> None:
    model = seeded(Residual)
    place, link = tmp_path / "x.safetensors", tmp_path / "link.safetensors"
    before = os.umask(0o027)
    try:
        pk.save(model, place)
        assert place.stat().st_mode & 0o777 == 0o640
        for mode in (0o600, 0o664):
            place.chmod(mode)
            pk.save(model, place)
            assert place.stat().st_mode & 0o777 == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real" / "x.safetensors")
    for _ in range(2):  # first a link to nothing yet
        pk.save(model, link)
        assert link.is_symlink()
        assert torch.equal(pk.load(seeded(Residual, 1), tmp_path / "real" / "x.safetensors")(X), model(X))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["x.safetensors", "real", "x.safetensors", "link.safetensors"]
    )


def test_what_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Residual)
    pk.save(model, tmp_path / "x.safetensors")
    held = (tmp_path / "x.safetensors").read_bytes()
    plan = pk.read_plan(tmp_path / "x.safetensors")
    with pytest.raises(pk.StorageError, match="The system refuses a file") as caught:
        plan.save(tmp_path / "nosuch" / "plan.json")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOENT
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shards_module.shutil, "disk_usage", lambda path: usage._replace(free=100))
    for more in ({}, {"max_shard_size": 1000}):
        with pytest.raises(pk.StorageError, match="There is no room for the checkpoint") as caught:
            pk.save(model, tmp_path / ("folder" if more else "x.safetensors"), **more)
        assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile_module, "_write", full)
    for more in ({}, {"max_shard_size": 1000}):
        with pytest.raises(pk.StorageError, match="No space left on device"):
            pk.save(model, tmp_path / ("folder" if more else "x.safetensors"), **more)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == held


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_end_leaves_no_temporary_files(number: int, tmp_path: Path) -> None:
    program = """
import os, signal, sys, torch, prunekit as pk
usual = signal.default_int_handler if int(sys.argv[2]) == signal.SIGINT else signal.SIG_DFL
signal.signal(int(sys.argv[2]), usual)  # programs of the background may ignore it
from prunekit_plugins.checkpoints import tensorfile
from torch import nn
write, count = tensorfile._write, iter(range(3))
def interrupted(*arguments):
    if next(count, None) is None:
        os.kill(os.getpid(), int(sys.argv[2]))
    write(*arguments)
tensorfile._write = interrupted
pk.save(nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)]), sys.argv[1], max_shard_size=200)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "new"), str(int(number))], capture_output=True)
    assert done.returncode == -number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [None, 1000])
def test_a_flipped_bit_is_found(size: int | None, tmp_path: Path) -> None:
    model = seeded(Residual)
    place = tmp_path / "saved"
    pk.save(model, place, max_shard_size=size)
    file = next(iter(Weights(place).files.values()))
    raw = bytearray(file.path.read_bytes())
    stored = file.tensors["conv1.weight"] if "conv1.weight" in file.tensors else next(iter(file.tensors.values()))
    raw[stored.start + stored.bytes - 1] ^= 1
    file.path.write_bytes(raw)
    fresh = seeded(Residual, 1)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(pk.CheckpointError, match="damaged after they were written"):
        pk.load(fresh, place)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(pk.CheckpointError, match="damaged after they were written"):
        pk.prune_checkpoint(place, tmp_path / "pruned", pk.Plan())
    assert not (tmp_path / "pruned").exists()


def test_files_without_checksums_load(tmp_path: Path) -> None:
    model = seeded(Residual)
    pk.save(model, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    metadata = {key: value for key, value in file.metadata.items() if key != "crc32"}
    assert len(metadata) == len(file.metadata) - 1
    safetensors.torch.save_file({name: file.read(name) for name in file.tensors}, tmp_path / "y.safetensors", metadata)
    assert torch.equal(pk.load(seeded(Residual, 1), tmp_path / "y.safetensors")(X), model(X))


def test_integers_are_not_assigned_to_what_is_trained(tmp_path: Path) -> None:
    model = seeded(lambda: Chain(4, 6, 2))
    pk.save(model, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    name = next(name for name in file.tensors if name.endswith("weight"))
    tensors = {other: file.read(other) for other in file.tensors}
    tensors[name] = tensors[name].to(torch.int32)
    metadata = {key: value for key, value in file.metadata.items() if key != "crc32"}
    safetensors.torch.save_file(tensors, tmp_path / "y.safetensors", metadata)
    fresh = seeded(lambda: Chain(4, 6, 2), 1)
    before = {key: id(value) for key, value in fresh.named_parameters()}
    with pytest.raises(pk.CheckpointError, match=r"torch\.int32, and a parameter that is trained can't be"):
        pk.load(fresh, tmp_path / "y.safetensors", assign=True)
    assert {key: id(value) for key, value in fresh.named_parameters()} == before
    for parameter in fresh.parameters():
        parameter.requires_grad_(False)
    assert dict(pk.load(fresh, tmp_path / "y.safetensors", assign=True).named_parameters())[name].dtype is torch.int32


def bad_plan(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(pruned(seeded(Residual), X)[1].plan.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["edits"].append(d["edits"][0]), "named twice"),
        (lambda d: d["edits"][0].__setitem__(3, 10**30), "no tensor has a size"),
        (lambda d: d["groups"].update(x={"size": 10**30, "kept": [0]}), "no tensor has a size"),
        (
            lambda d: d["parameters"].update(x={"shape": [3], "dims": [{"size": 3, "kept": []}]}),
            "nothing stays of a dim of size 3",
        ),
    ],
)
def test_plans_that_no_model_can_have_are_refused(change: Callable[[dict[str, Any]], object], why: str) -> None:
    with pytest.raises(pk.PlanError, match=why):
        pk.Plan.from_json(bad_plan(change))


def test_a_plan_that_names_a_thing_twice_is_refused() -> None:
    with pytest.raises(pk.PlanError, match="twice"):
        pk.Plan.from_json('{"format": 1, "format": 1}')

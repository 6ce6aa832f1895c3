"""Models whose weights stay on disk: the same statistics, plans and repairs as in memory, a tensor at a time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import prunekit as pk
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from prunekit_plugins.compensation import repair, side_by_side
from prunekit_plugins.compensation.forwards import Room
from prunekit_plugins.importance import CalibratedImportance
from tests.core.test_checkpoint import IDS, Rotary, seeded
from tests.core.test_opaque import FOREIGN, Foreign, Net, registry_of
from tests.models import Encoder

ALL = ("moments", "covariances")


class Mixer(nn.Module):
    """Parts of packed weights, a weight that is used transposed, one that is used as a function, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide = nn.Parameter(torch.randn(16, 24))
        self.scale = nn.Parameter(torch.randn(24))
        self.packed = nn.Linear(24, 32)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = (x @ self.wide).relu() * self.scale
        first, second = self.packed.weight.chunk(2)
        x = nn.functional.linear(x, first, self.packed.bias[:16]) + nn.functional.linear(
            x, second, self.packed.bias[16:]
        )
        result: Tensor = self.head(x)
        return result


class Pictures(nn.Module):
    """Convolutions with norms: buffers that a checkpoint holds, one a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def inputs(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


MODELS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "encoder": (Encoder, inputs(8, 6, 10)),
    "mixer": (Mixer, inputs(8, 5, 6)),
    "pictures": (Pictures, inputs(8, 3, 8, 8)),
    "tied": (Rotary, [IDS, IDS.flip(1)]),
}


def stored(model: nn.Module, folder: Path, shards: int | None = 4000) -> Path:
    pk.save(model, folder / "dense", max_shard_size=shards)
    return folder / "dense"


def emptied(make: Callable[[], nn.Module]) -> nn.Module:
    """The model on the meta device, but for buffers that no checkpoint holds."""
    with torch.device("meta"):
        model = make().eval()
    whole = make()
    for path, module in model.named_modules():
        for leaf in module._non_persistent_buffers_set:
            module.register_buffer(leaf, whole.get_submodule(path).get_buffer(leaf), persistent=False)
    return model


def equal(first: pk.Statistics, second: pk.Statistics) -> bool:
    assert list(first.sites) == list(second.sites)
    assert first.shapes == second.shapes
    for name, seen in first.sites.items():
        other = second.sites[name]
        assert seen.site == other.site
        assert seen.moments.count == other.moments.count
        pairs = [(getattr(s.moments, part), getattr(o.moments, part)) for part in ("mean", "variance", "covariance")
                 for s, o in [(seen, other)]]  # fmt: skip
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    make, batches = MODELS[name]
    model = seeded(make)
    expected = pk.calibrate(model, batches, parts=ALL)
    place = stored(model, tmp_path)
    found = pk.calibrate(emptied(make), batches, parts=ALL, weights=place)
    assert equal(expected, found)
    # other weights give others, so they are read
    assert not equal(pk.calibrate(seeded(make, 1), batches, parts=ALL), found)


@pytest.mark.parametrize("name", ["encoder", "pictures"])
def test_the_files_may_have_another_dtype(name: str, tmp_path: Path) -> None:
    make, batches = MODELS[name]
    model = seeded(make).bfloat16()
    place = stored(model, tmp_path)
    assert equal(
        pk.calibrate(model.float(), batches, parts=ALL), pk.calibrate(emptied(make), batches, parts=ALL, weights=place)
    )


def test_few_layers_can_be_asked_for(tmp_path: Path) -> None:
    make, batches = MODELS["encoder"]
    place = stored(seeded(make), tmp_path)
    found = pk.calibrate(emptied(make), batches, weights=place, layers=["mlp.0"])
    assert list(found.sites) == ["mlp.0.layers.0.weight", "mlp.0.layers.1.weight"]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batches = MODELS["encoder"]
    model = seeded(make)
    place = stored(model, tmp_path)
    alive: list[tuple[StorageWeakRef, int]] = []
    most, read = 0, TensorFile.read

    def watched(*arguments: Any, **options: Any) -> Tensor:
        nonlocal most
        tensor = read(*arguments, **options)
        alive[:] = [entry for entry in alive if not entry[0].expired()]
        alive.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
        most = max(most, sum(size for _, size in alive))
        return tensor

    monkeypatch.setattr(TensorFile, "read", watched)
    pk.calibrate(emptied(make), batches, weights=place)
    sizes = {name: tensor.nbytes for name, tensor in model.named_parameters()}
    layers = [sum(tensor.nbytes for tensor in part.parameters(recurse=False)) for part in model.modules()]
    assert max(sizes.values()) <= most <= max(layers) < sum(sizes.values()) / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_plans_and_repairs_are_those_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    make, batches = MODELS[name]
    model = seeded(make)
    place = stored(model, tmp_path)
    example = batches[0][:1]
    options: dict[str, Any] = {"ratio": 0.5, "calibration": batches, "reestimate_batchnorm": False}
    expected = pk.prune(model, example, importance=CalibratedImportance(curvatures=False), **options)
    empty = emptied(make)
    found = pk.prune(empty, example.to("meta"), weights=place, **options)
    assert any("count alike, for want of gradients: they need a model in memory" in note for note in found.report.notes)
    assert found.plan == expected.plan
    assert found.compensation == expected.compensation
    assert expected.compensation is not None
    assert expected.compensation.layers
    assert len(expected.repaired) == 0
    assert "repaired=result.repaired" in str(found)
    assert all(parameter.is_meta for parameter in empty.parameters())
    pk.prune_checkpoint(place, tmp_path / "small", found.plan, repaired=found.repaired)
    small = pk.load(seeded(make, 1), tmp_path / "small").state_dict()
    assert all(torch.equal(small[key], value) for key, value in model.state_dict().items())
    # without what was repaired, it is the plain cut
    pk.prune_checkpoint(place, tmp_path / "cut", found.plan)
    cut = pk.load(seeded(make, 1), tmp_path / "cut").state_dict()
    plain = found.plan.apply(seeded(make)).state_dict()
    assert all(torch.equal(cut[key], value) for key, value in plain.items())
    assert any(not torch.equal(small[key], value) for key, value in plain.items())


@pytest.mark.slow
def test_a_compensator_that_makes_it_worse_is_undone_on_disk(tmp_path: Path) -> None:
    """What stood there before it, from the files and from another compensator, is there again."""
    make, batches = MODELS["mixer"]
    place = stored(seeded(make), tmp_path)

    def spoil(repair: Any) -> None:
        for name in ("head.weight", "stem.bias"):
            for _ in range(2):
                repair.write(name, repair.values(name) * -50)

    def pruned(methods: list[Any]) -> pk.PruneResult:
        options: dict[str, Any] = {"calibration": batches, "compensation": methods, "reestimate_batchnorm": False}
        return pk.prune(emptied(make), batches[0][:1].to("meta"), ratio=0.5, weights=place, **options)

    expected, found = pruned(["least_squares"]), pruned(["least_squares", spoil])
    assert found.compensation is not None
    assert list(found.compensation.undone) == ["function"]
    assert set(expected.repaired) == set(found.repaired)
    assert len(found.repaired) > 0
    for name, tensor in expected.repaired.items():
        assert torch.equal(tensor, found.repaired[name]), name


@pytest.mark.parametrize("name", ["encoder", "mixer", "pictures"])
def test_moments_of_one_layer_at_a_time_give_the_same_repairs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one stage all layers but the first read the original, so it doesn't matter in how many passes."""
    make, batches = MODELS[name]
    place = stored(seeded(make), tmp_path)
    sizes: list[int] = []
    gathered = repair.gather

    def counting(part: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(part))
        return gathered(part, *arguments, **options)

    monkeypatch.setattr(repair, "gather", counting)

    def pruned() -> pk.PruneResult:
        sizes.clear()
        options: dict[str, Any] = {"calibration": batches, "stages": 1, "reestimate_batchnorm": False}
        return pk.prune(emptied(make), batches[0][:1].to("meta"), ratio=0.5, weights=place, **options)

    together = pruned()
    whole = list(sizes)
    assert len(whole) == 1
    monkeypatch.setattr(side_by_side, "MOST_MOMENTS", 1)
    apart = pruned()
    assert len(sizes) > 1
    assert sum(sizes) == sum(whole)
    assert sizes[1:] == [1] * len(sizes[1:])
    assert apart.compensation == together.compensation
    assert list(apart.repaired) == list(together.repaired)
    assert all(torch.equal(value, together.repaired[key]) for key, value in apart.repaired.items())


def test_a_stage_reads_the_weights_behind_the_last_one_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is read a few times, however many stages there are, while there is room for what they go on with."""
    make, batches = MODELS["encoder"]
    place = stored(seeded(make), tmp_path)
    read, count = TensorFile.read, 0

    def counting(*arguments: Any, **options: Any) -> Tensor:
        nonlocal count
        count += 1
        return read(*arguments, **options)

    monkeypatch.setattr(TensorFile, "read", counting)

    def pruned(stages: int) -> tuple[pk.PruneResult, int]:
        nonlocal count
        count = 0
        options: dict[str, Any] = {"calibration": batches, "stages": stages, "reestimate_batchnorm": False}
        return pk.prune(emptied(make), batches[0][:1].to("meta"), ratio=0.5, weights=place, **options), count

    few, many = pruned(1)[1], pruned(12)
    monkeypatch.setattr(side_by_side, "Room", lambda size: Room(0))
    anew = pruned(12)
    assert few < many[1] < 1.3 * few
    assert anew[1] > 1.5 * many[1]
    assert many[0].compensation == anew[0].compensation
    assert all(torch.equal(values, anew[0].repaired[name]) for name, values in many[0].repaired.items())


def test_repaired_values_are_rounded_to_the_dtype_of_the_files(tmp_path: Path) -> None:
    make, batches = MODELS["encoder"]
    place = stored(seeded(make).bfloat16(), tmp_path)
    found = pk.prune(emptied(make), batches[0][:1].to("meta"), ratio=0.5, calibration=batches, weights=place)
    assert {tensor.dtype for tensor in found.repaired.values()} == {torch.bfloat16}
    pk.prune_checkpoint(place, tmp_path / "small", found.plan, repaired=found.repaired)
    small = pk.load(seeded(make, 1).bfloat16(), tmp_path / "small")
    for name, tensor in found.repaired.items():
        assert torch.equal(small.state_dict()[name], tensor)


def test_every_name_of_a_shared_tensor_is_repaired(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
            self.third = nn.Linear(16, 16)
            self.third.weight = self.second.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.third(self.second(self.first(x).relu()).relu()).relu())
            return result

    model = seeded(Twice)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "dense.safetensors")
    batches = inputs(16, 6)
    plain = CalibratedImportance(curvatures=False)
    expected = pk.prune(model, batches[0], ratio=0.5, calibration=batches, importance=plain)
    assert any(layer.consumer == "second.weight" for layer in expected.compensation.layers)  # type: ignore[union-attr]
    found = pk.prune(emptied(Twice), batches[0], ratio=0.5, calibration=batches, weights=tmp_path / "dense.safetensors")
    assert {"second.weight", "third.weight"} <= set(found.repaired)
    pk.prune_checkpoint(
        tmp_path / "dense.safetensors", tmp_path / "small.safetensors", found.plan, repaired=found.repaired
    )
    small = pk.load(seeded(Twice, 1), tmp_path / "small.safetensors").state_dict()
    assert all(torch.equal(small[key], value) for key, value in model.state_dict().items())


def test_opaque_layers_get_their_weights_for_good(tmp_path: Path) -> None:
    model, batches = seeded(Net), inputs(9, 5)
    place = stored(model, tmp_path)
    registry = registry_of({Foreign: FOREIGN})
    expected = pk.calibrate(model, batches, parts=ALL, registry=registry)
    assert equal(expected, pk.calibrate(emptied(Net), batches, parts=ALL, weights=place, registry=registry))


class Writes(nn.Module):
    """Changes its weight while it runs, which would be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.mul_(2)
        result: Tensor = self.layer(x)
        return result


class Lost(nn.Module):
    """A buffer that no checkpoint holds, and a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("steps", torch.arange(4.0), persistent=False)
        self.shift = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x * self.steps + self.shift)
        return result


def test_what_can_not_be_run_is_told(tmp_path: Path) -> None:
    batches = inputs(3, 4)
    with pytest.raises(pk.ArgumentError, match=r"no values to run with\.(?s:.*)layer\.weight(?s:.*)weights=\.\.\."):
        pk.calibrate(emptied(Writes), batches)
    place = stored(seeded(Writes), tmp_path)
    with pytest.raises(pk.ArgumentError, match=r"layer\.weight is written to by aten\.mul_"):
        pk.calibrate(emptied(Writes), batches, weights=place)
    options: dict[str, Any] = {"parts": ("gradients",), "loss_fn": lambda outputs, batch: outputs.sum()}
    with pytest.raises(pk.ArgumentError, match="Gradients need a model in memory"):
        pk.calibrate(emptied(Writes), batches, weights=place, **options)
    with pytest.raises(pk.ArgumentError, match="Weights on disk are for a model on the meta device"):
        pk.calibrate(seeded(Writes), batches, weights=place)
    (tmp_path / "lost").mkdir()
    place = stored(seeded(Lost), tmp_path / "lost")
    with torch.device("meta"):
        lost = Lost().eval()
    with pytest.raises(pk.CheckpointError, match=r"lacks values that the model runs with(?s:.*)steps, shift"):
        pk.calibrate(lost, batches, weights=place)
    whole = emptied(Lost)
    whole.shift = torch.ones(4)
    assert equal(pk.calibrate(seeded(Lost), batches, parts=ALL), pk.calibrate(whole, batches, parts=ALL, weights=place))


def test_real_buffers_beside_parameters_on_the_meta_device_are_analysed() -> None:
    empty = emptied(Lost)
    empty.shift = torch.ones(4)
    model = nn.Sequential(emptied(lambda: nn.Linear(4, 4)), empty, emptied(lambda: nn.Linear(4, 2)))
    for example in (torch.zeros(2, 4), torch.zeros(2, 4, device="meta")):
        plan = pk.BasePruner(model, example, "random").plan()
        assert sorted(plan.kept) == ["1.layer"]


def test_models_whose_weights_are_loaded_while_they_run_are_refused() -> None:
    """As accelerate's hooks do it: the weights are put in place by a function that calls the forward."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    kept = copy.deepcopy(model[0].state_dict())
    model[0].to("meta")

    def loading(forward: Callable[..., Any], module: nn.Module, x: Tensor) -> Any:
        module.load_state_dict(kept, assign=True)
        return forward(x)

    vars(model[0])["forward"] = functools.partial(loading, model[0].forward, model[0])
    for call in (lambda: pk.prune(model, torch.zeros(1, 4)), lambda: pk.calibrate(model, [torch.zeros(1, 4)])):
        with pytest.raises(
            pk.UnsupportedModelError, match=r"are loaded while it runs\.(?s:.*)0\.weight(?s:.*)weights="
        ):
            call()
    assert model(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.slow
def test_repaired_values_must_fit(tmp_path: Path) -> None:
    make, batches = MODELS["encoder"]
    place = stored(seeded(make), tmp_path)
    found = pk.prune(emptied(make), batches[0][:1], ratio=0.5, calibration=batches, weights=place)
    other = pk.BasePruner(seeded(make), batches[0][:1], pruning_ratio=0.25).plan()
    with pytest.raises(pk.CheckpointError, match="Repaired values don't fit the plan"):
        pk.prune_checkpoint(place, tmp_path / "small", other, repaired=found.repaired)
    with pytest.raises(pk.CheckpointError, match="nobody is missing"):
        pk.prune_checkpoint(place, tmp_path / "small", found.plan, repaired={"nobody": torch.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_batch_norms_on_disk_are_left_and_told(tmp_path: Path) -> None:
    make, batches = MODELS["pictures"]
    place = stored(seeded(make), tmp_path)
    found = pk.prune(emptied(make), batches[0][:1], ratio=0.5, calibration=batches, weights=place).compensation
    assert found is not None
    assert "the model is on disk" in found.left["batch norms"]


def test_damages_are_not_measured_on_disk(tmp_path: Path) -> None:
    make, batches = MODELS["encoder"]
    place = stored(seeded(make), tmp_path)
    with pytest.raises(pk.ArgumentError, match="Damages can't be measured"):
        pk.prune(
            emptied(make), batches[0][:1], target={"macs": 0.5}, allocation="dp", calibration=batches, weights=place
        )

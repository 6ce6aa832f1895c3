"""Models that accelerate has offloaded: told, and what is advised works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import CalibratedImportance
from tests.cli.toys import blocks
from tests.models import Encoder

accelerate = pytest.importorskip("accelerate")
BATCHES, ROWS = [torch.randn(8, 6, 10)], [torch.randn(12, 4)]


def on_cpu(model: nn.Module, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device="cpu")


def on_disk(model: nn.Module, folder: Path) -> Any:
    return accelerate.disk_offload(model, folder / "offloaded", execution_device="cpu")


def in_parts(model: nn.Module, folder: Path) -> Any:
    devices = {"stem": "cpu", "blocks": "disk", "head": "cpu"}
    return accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=folder / "offloaded")


@pytest.mark.parametrize("offload", [on_cpu, on_disk, in_parts])
def test_offloaded_models_are_refused_and_still_run(offload: Callable[[nn.Module, Path], Any], tmp_path: Path) -> None:
    model = blocks().eval()
    expected = model(ROWS[0])
    model = offload(model, tmp_path) or model
    for call in (
        lambda: pk.calibrate(model, ROWS),
        lambda: pk.prune(model, ROWS[0]),
        lambda: pk.prune(model, ROWS[0], calibration=ROWS),
    ):
        with pytest.raises(pk.UnsupportedModelError, match=r"are loaded while it runs\.(?s:.*)weights=\.\.\."):
            call()
    torch.testing.assert_close(model(ROWS[0]), expected)


def test_a_dispatched_model_that_is_in_memory_is_calibrated() -> None:
    model = blocks().eval()
    expected = pk.calibrate(model, ROWS)
    devices = {name: "cpu" for name, _ in model.named_children()}
    accelerate.dispatch_model(model, devices, main_device="cpu", force_hooks=True)
    assert any("forward" in vars(module) for module in model.modules())
    found = pk.calibrate(model, ROWS)
    assert list(found.sites) == list(expected.sites)
    assert all(
        torch.equal(found.sites[name].moments.variance, seen.moments.variance) for name, seen in expected.sites.items()
    )


def test_what_is_advised_works(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    pk.save(model, tmp_path / "dense.safetensors")
    expected = pk.prune(model, BATCHES[0], calibration=BATCHES, importance=CalibratedImportance(curvatures=False))
    with accelerate.init_empty_weights():
        empty = Encoder().eval()
    found = pk.prune(empty, BATCHES[0], calibration=BATCHES, weights=tmp_path / "dense.safetensors")
    assert found.plan == expected.plan
    assert found.compensation == expected.compensation

"""Folders of timm: what ``save_for_hf`` and ``push_to_hf_hub`` write in, a smaller one out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli.entry import main

timm = pytest.importorskip("timm", reason="needs prunekit[timm]")

X = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
VIT: dict[str, Any] = {"img_size": 32, "depth": 2}


def folder_of(tmp_path: Path, name: str, *, safe: bool = True, **arguments: Any) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7, **arguments)
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    timm.models.save_for_hf(model, str(tmp_path / "big"), safe_serialization=safe)
    return tmp_path / "big"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(X)
    return found


@pytest.mark.parametrize(
    ("name", "arguments", "changed"),
    [
        ("vit_tiny_patch16_224", VIT, {"embed_dim": (192, 96)}),
        pytest.param(
            "convnext_atto",
            {},
            {"dims[0]": (40, 20), "dims[1]": (80, 40), "dims[2]": (160, 80), "dims[3]": (320, 160)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_arguments_of_an_architecture_say_the_sizes_where_they_can(
    name: str, arguments: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    big = folder_of(tmp_path, name, **arguments)
    model = pk.load_folder(big)
    result = pk.prune(model, X, ratio=0.5)
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan, source=big)
    assert (saved.stock, dict(saved.changed)) == (True, changed)
    assert saved.opened == f'timm.create_model("local-dir:{tmp_path / "small"}", pretrained=True)'
    loaded = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-6)
    assert loaded.num_classes == 7
    assert features_in(tmp_path / "small") == loaded.num_features == model.get_classifier().in_features


def test_a_model_that_trains_is_saved_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pk.save_folder(model, tmp_path / "saved", plan=pk.Plan())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert features_in(tmp_path / "saved") == 512


def features_in(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["num_features"]


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_in_and_a_smaller_one_out(safe: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big, small = folder_of(tmp_path, "resnet10t", safe=safe), tmp_path / "small"
    (big / "labels.txt").write_text("one\n")
    assert main(["prune", f"timm:{big}", "--target", "macs=0.5", "--out", str(small), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["weights"] == str(big)
    assert data["folder"]["stock"] is False
    assert data["folder"]["copied"] == ["labels.txt"]
    model = pk.load_folder(small)
    assert features_in(big) == 512
    assert features_in(small) == model.get_classifier().in_features < 512
    whole = pk.load_folder(big)
    stock = timm.create_model(f"local-dir:{big}", pretrained=True)
    assert torch.allclose(logits(whole), logits(stock), atol=1e-5)
    assert torch.allclose(logits(pk.Plan.load(small / "prunekit_plan.json").apply(whole)), logits(model), atol=1e-5)
    assert "create_model" not in (small / "README.md").read_text()
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model(f"local-dir:{small}", pretrained=True)
    assert main(["prune", f"hf:{small}", "--ratio", "0.2", "--out", str(tmp_path / "smaller")]) == 0
    assert f'loaded again with prunekit.load_folder("{tmp_path / "smaller"}")' in capsys.readouterr().out


def test_a_folder_that_was_spoilt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = folder_of(tmp_path, "resnet10t")
    config = json.loads((big / "config.json").read_text())
    (big / "config.json").write_text(json.dumps({**config, "architecture": "resnet18"}))
    with pytest.raises(pk.CheckpointError, match="can't be read"):
        pk.load_folder(big)
    assert main(["prune", f"timm:{big}", "--on-disk", "--out", str(tmp_path / "small")]) == 2
    capsys.readouterr()
    (big / "model.safetensors").unlink()
    assert main(["inspect", f"timm:{big}"]) == 1
    assert "holds no weights" in capsys.readouterr().err

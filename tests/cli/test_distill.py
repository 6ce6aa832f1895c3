"""``prunekit distill``: a pruned checkpoint in, a better one out, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunekit as pk
from tests.cli import toys
from tests.cli.conftest import Cli

MODEL = "tests.cli.toys:blocks"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The teacher's weights, a student pruned from them, and data."""
    torch.manual_seed(0)
    teacher = toys.Blocks().eval()
    found = {name: tmp_path / f"{name}.safetensors" for name in ("teacher", "small", "out", "run")}
    safetensors.torch.save_file(teacher.state_dict(), str(found["teacher"]))
    small = copy.deepcopy(teacher)
    pk.save(small, found["small"], plan=pk.prune(small, torch.randn(2, 4), ratio=0.5).plan)
    found["data"] = tmp_path / "data.pt"
    torch.save(torch.randn(64, 4), found["data"])
    return found


def call(files: dict[str, Path], *more: object) -> tuple[object, ...]:
    return (
        "distill", files["small"], MODEL, "--input", "1,4", "--weights", files["teacher"], "--data", files["data"],
        "--out", files["out"], *more,
    )  # fmt: skip


def distance(path: Path, files: dict[str, Path]) -> float:
    teacher = toys.Blocks().eval()
    teacher.load_state_dict(safetensors.torch.load_file(str(files["teacher"])))
    student = pk.load(toys.Blocks().eval(), path)
    x = torch.load(files["data"], weights_only=True)
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(student(x), teacher(x)))


def test_a_checkpoint_is_trained_and_written(cli: Cli, files: dict[str, Path]) -> None:
    losses = ("--loss", "logits=1", "--loss", "hidden=0.5")
    called = cli(*call(files, *losses, "--epochs", 30, "--lr", 1e-2, "--held-out", files["data"], "--json"))
    assert called.code == 0, called.err
    data = called.data
    assert (data["steps"], data["stopped"]) == (120, "")
    assert set(data["losses"]) == {"logits", "hidden"}
    assert min(loss for _, loss in data["held_out"]) < data["held_out"][0][1] / 2
    assert distance(files["out"], files) < distance(files["small"], files) / 2
    assert pk.read_plan(files["out"]) == pk.read_plan(files["small"])


def test_people_get_a_table(cli: Cli, files: dict[str, Path]) -> None:
    called = cli(*call(files, "--steps", 3))
    assert called.code == 0, called.err
    lines = called.out.splitlines()
    assert f"{files['small']} beside {MODEL}, {files['teacher']}, input 1,4" in called.out
    assert lines[-2].split()[0] == "logits"
    assert lines[-1] == f"written to {files['out']}, after 3 of 3 steps"


def test_a_run_goes_on_from_its_file(cli: Cli, files: dict[str, Path]) -> None:
    options = ("--steps", 4, "--lr", 1e-2, "--checkpoint", files["run"], "--json")
    first = cli(*call(files, *options)).data
    written = files["out"].read_bytes()
    files["out"].unlink()
    assert cli(*call(files, *options)).data == first
    assert files["out"].read_bytes() == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "logits"), "A --loss must be a name, an equals sign and a number."),
        (("--loss", "logit=1"), "There is no such loss."),
        (("--out", "nowhere/out.safetensors"), "The folder for --out doesn't exist."),
        (("--checkpoint", "nowhere/run.safetensors"), "The folder for --checkpoint doesn't exist."),
        (("--held-out", "held_out"), "The calibration data aren't named in a known way."),
        (("--steps", 1, "--epochs", 1), "Give steps or epochs, not both."),
    ],
)
def test_what_is_refused(cli: Cli, files: dict[str, Path], arguments: tuple[object, ...], message: str) -> None:
    called = cli(*call(files, *arguments))
    assert called.code == 2
    assert message in called.err
    assert not files["out"].exists()


def test_a_student_of_another_model_is_refused(cli: Cli, files: dict[str, Path]) -> None:
    called = cli(
        "distill", files["small"], "tests.cli.toys:perceptron", "--input", "1,4", "--data", files["data"],
        "--out", files["out"],
    )  # fmt: skip
    assert called.code == 1
    assert "The checkpoint is for another model." in called.err


def test_a_teacher_that_can_not_be_meant_is_refused(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    folders = {}
    for name, embed in (("large", 48), ("small", 24)):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=4, embed_dim=embed).eval()
        model.pretrained_cfg["input_size"] = (3, 32, 32)
        folders[name] = tmp_path / name
        pk.save_folder(model, folders[name], plan=pk.Plan())
    images = tmp_path / "images.pt"
    torch.save(torch.randn(4, 3, 32, 32), images)
    end = ("--data", images, "--out", tmp_path / "healed", "--steps", 1)
    swapped = cli("distill", folders["large"], f"timm:{folders['small']}", *end)
    assert swapped.code == 2
    assert "The student has more parameters than the teacher." in swapped.err
    assert "prunekit distill STUDENT TEACHER" in swapped.err
    assert not (tmp_path / "healed").exists()


def test_a_teacher_with_random_weights_is_refused(cli: Cli, files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from torchvision.models import squeezenet1_1

    model, small = squeezenet1_1().eval(), tmp_path / "small.safetensors"
    pk.save(model, small, plan=pk.prune(model, torch.randn(1, 3, 64, 64), ratio=0.2).plan)
    torch.save(torch.randn(2, 3, 64, 64), tmp_path / "images.pt")
    called = cli(
        "distill", small, "torchvision:squeezenet1_1", "--input", "1,3,64,64", "--data", tmp_path / "images.pt",
        "--out", files["out"], "--steps", 1,
    )  # fmt: skip
    assert called.code == 2
    assert "The teacher has random weights." in called.err
    assert "--weights FILE" in called.err
    assert not files["out"].exists()

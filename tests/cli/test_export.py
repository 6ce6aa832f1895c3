from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunekit as pk
from tests.cli import toys
from tests.cli.conftest import Cli

PERCEPTRON = ("tests.cli.toys:perceptron", "--input", "1,4")


def pruned(folder: Path) -> tuple[torch.nn.Module, pk.Plan]:
    torch.manual_seed(0)
    model = toys.perceptron().eval()
    plan = pk.prune(model, torch.randn(1, 4)).plan
    pk.save(model, folder / "small.safetensors", plan=plan)
    pk.save(model, folder / "shards", plan=plan, max_shard_size=100)
    plan.save(folder / "plan.json")
    return model, plan


def run_onnx(path: Path, x: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("given", [("--weights", "shards"), ("--plan", "plan.json")], ids=str)
def test_onnx_computes_what_the_pruned_model_does(given: tuple[str, str], cli: Cli, tmp_path: Path) -> None:
    model, _ = pruned(tmp_path)
    out = tmp_path / "small.onnx"
    called = cli("export", *PERCEPTRON, given[0], tmp_path / given[1], "--out", out, "--json")
    assert (called.code, called.err) == (0, "")
    x = torch.randn(1, 4)
    torch.testing.assert_close(run_onnx(out, x), model(x))
    assert called.data["bytes"] == out.stat().st_size
    assert called.data["error"] <= called.data["tolerance"] == 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "shards", "plan.json", "small.onnx"}


def test_a_program_runs_without_the_code_of_the_model(cli: Cli, tmp_path: Path) -> None:
    model, _ = pruned(tmp_path)
    out = tmp_path / "small.pt2"
    called = cli(
        "export", *PERCEPTRON, "--weights", tmp_path / "small.safetensors", "--format", "torch-export", "--out", out
    )
    assert called.code == 0, called.err
    assert f"tests.cli.toys:perceptron, {tmp_path / 'small.safetensors'}, input 1,4: 35 parameters" in called.out
    assert "1 outputs, largest relative error 0.0e+00 (accepted: 1e-04)" in called.out
    x = torch.randn(1, 4)
    assert torch.equal(torch.export.load(str(out)).module()(x), model(x))


@pytest.mark.slow
def test_what_differs_is_not_written(cli: Cli, tmp_path: Path) -> None:
    pruned(tmp_path)
    out = tmp_path / "small.onnx"
    called = cli("export", "tests.cli.toys:blocks", "--input", "1,4", "--tolerance", 0, "--out", out)
    assert called.code == 1
    assert called.err.startswith("The exported model computes something else; nothing was written.")
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_wrong_arguments_are_told(cli: Cli, tmp_path: Path) -> None:
    pruned(tmp_path)
    small, plan, out = tmp_path / "small.safetensors", tmp_path / "plan.json", ("--out", tmp_path / "x.onnx")
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (*PERCEPTRON, *out, "--format", "onx"): (2, "There is no such format.\n  why: got 'onx'\n  what to do: did"),
        (*PERCEPTRON, *out, "--weights", small, "--plan", plan): (2, "Give --plan or the weights of a pruned model"),
        (*PERCEPTRON, *out, "--weights", plan): (1, "The file is corrupt or no safetensors file."),
        (*PERCEPTRON, *out, "--weights", tmp_path / "nosuch"): (1, "There is no such file."),
        (*PERCEPTRON, "--out", tmp_path): (2, "--out must be a file."),
        (*PERCEPTRON,): (2, "Usage: prunekit export"),
    }
    for arguments, (code, message) in cases.items():
        called = cli("export", *arguments)
        assert called.code == code, called.err
        assert called.err.startswith(message)
        assert called.out == ""

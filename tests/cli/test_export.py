from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
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


def test_a_folder_goes_to_where_it_is_served(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    folders = pytest.importorskip("tests.export.folders")
    monkeypatch.setattr("prunekit_plugins.export.gguf.export.installed", lambda name: False)
    monkeypatch.setattr("prunekit_plugins.export.mlx.export.installed", lambda name: False)
    big, small = folders.whole(tmp_path / "big"), tmp_path / "small"
    arguments = ("--target", "params=0.7", "--serve", "gguf", "--out", small)
    called = cli("prune", f"hf:{big}", *arguments)
    assert called.code == 0, called.err
    assert called.out.endswith("not checked in the engine of gguf, which isn't installed\n")

    called = cli("export", small, "--to", "gguf", "--out", tmp_path / "small.gguf")
    assert called.code == 0, called.err
    first, check, written = called.out.splitlines()
    assert first.startswith(f"hf:{small}, {small}, input 1,16:int64: ")
    assert check == "not checked in the engine: xllamacpp isn't installed"
    assert written == f"written: {tmp_path / 'small.gguf'} ({(tmp_path / 'small.gguf').stat().st_size:,} bytes)"

    called = cli("export", f"hf:{small}", "--to", "mlx", "--out", tmp_path / "mlx", "--json")
    assert (called.code, called.data["checked"], called.data["format"]) == (0, False, "mlx"), called.err
    called = cli("export", small, "--to", "hf", "--out", tmp_path / "hf", "--json")
    assert (called.code, called.data["checked"]) == (0, True), called.err
    assert (called.data["prompt"], called.data["steps"]) == (24, 10)
    assert called.data["engine"].startswith("transformers ")
    assert called.data["error"] < 1e-5

    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (*PERCEPTRON, "--to", "gguf"): (2, "--input is for onnx and torch-export."),
        (PERCEPTRON[0], "--to", "gguf"): (2, "Only folders of models are exported to this format."),
        (small, "--to", "hf", "--out", big): (2, "The destination isn't an empty folder."),
        (small, "--to", "gguf", "--out", big): (2, "--out must be a file."),
        (big, "--to", "gguf", "--plan", small / "nosuch"): (1, "There is no such file."),
    }
    for case, (code, message) in cases.items():
        called = cli("export", *(case if "--out" in case else (*case, "--out", tmp_path / "x")))
        assert called.code == code, called.err
        assert message in called.err
    assert not (tmp_path / "x").exists()


def test_a_folder_is_not_checked_without_the_packages_that_a_check_needs(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may be there: what writes its files isn't, so that nothing is known against the folder."""
    pytest.importorskip("transformers")
    folders = pytest.importorskip("tests.export.folders")
    monkeypatch.setitem(sys.modules, "gguf", None)
    big = folders.whole(tmp_path / "big")
    arguments = ("prune", f"hf:{big}", "--ratio", 0.3, "--serve", "gguf", "--out")
    called = cli(*arguments, tmp_path / "small")
    assert called.code == 0, called.err
    said = 'not checked in the engine of gguf, gguf can\'t be imported: pip install "prunekit[gguf]"\n'
    assert called.out.endswith(said)
    called = cli(*arguments, tmp_path / "again", "--json")
    assert (called.code, called.data["served"]) == (0, {"as": "gguf", "checked": None})


def test_a_folder_that_fails_in_the_engine_is_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    folders = pytest.importorskip("tests.export.folders")
    big = folders.whole(tmp_path / "big")
    (big / "tokenizer.json").unlink()
    called = cli("prune", f"hf:{big}", "--ratio", 0.3, "--serve", "gguf", "--out", tmp_path / "small")
    assert called.code == 1
    assert "The folder was written, and doesn't pass the load test of where it is served." in called.err
    assert "The tokenizer can't be exported to GGUF" in called.err
    assert (tmp_path / "small" / "config.json").is_file()


def test_a_name_of_another_format_is_refused_before_the_model_is_built(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was built")

    for command in ("export", "prune", "distill"):
        monkeypatch.setattr(f"prunekit_plugins.cli.commands.{command}.build", built)
    (tmp_path / "small.safetensors").touch()
    (tmp_path / "plan.json").write_text(pk.Plan().to_json())
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "dense.safetensors")
    distill = ("distill", tmp_path / "small.safetensors", PERCEPTRON[0], "--data", "tests.cli.toys:batches")
    cases: dict[tuple[object, ...], str] = {
        ("export", *PERCEPTRON, "--to", "onnx", "--out", tmp_path / "x.gguf"): "gguf",
        ("export", *PERCEPTRON, "--to", "torch-export", "--out", tmp_path / "x.onnx"): "onnx",
        ("prune", *PERCEPTRON, "--out", tmp_path / "x.onnx"): "onnx",
        ("prune", *PERCEPTRON, "--out", tmp_path / "x.PT2"): "torch-export",
        (*distill, "--out", tmp_path / "x.gguf"): "gguf",
        ("apply", tmp_path / "plan.json", tmp_path / "dense.safetensors", tmp_path / "x.gguf"): "gguf",
    }
    before = set(tmp_path.iterdir())
    for arguments, named in cases.items():
        called = cli(*arguments)
        assert called.code == 2, (arguments, called.err)
        assert called.err.startswith("The name is one of another format.")
        assert f"--to {named} --out x." in called.err
    with pytest.raises(pk.ArgumentError, match=r"The name is one of another format\."):
        pk.save(torch.nn.Linear(2, 2), tmp_path / "x.gguf")
    assert set(tmp_path.iterdir()) == before


def test_what_files_can_not_be_made_in_is_told_before_the_model_is_built(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was built")

    def read_only(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for command in ("export", "prune"):
        monkeypatch.setattr(f"prunekit_plugins.cli.commands.{command}.build", built)
    monkeypatch.setattr(os, "open", read_only)
    out = tmp_path / "x"
    for arguments, option in {
        ("export", *PERCEPTRON, "--out", out): "--out",
        ("prune", *PERCEPTRON, "--out", out): "--out",
        ("prune", *PERCEPTRON, "--plan", out): "--plan",
        ("prune", *PERCEPTRON, "--report", out.with_suffix(".html")): "--report",
        ("prune", *PERCEPTRON, "--save-recipe", out): "--save-recipe",
        ("apply", pk_plan(tmp_path), tmp_path / "dense", out): "DESTINATION",
    }.items():
        called = cli(*arguments)
        assert (called.code, called.out) == (2, ""), called.err
        assert called.err.startswith(f"The folder for {option} can't be written to.\n  where: {tmp_path}\n")
        assert "why: Read-only file system" in called.err
    monkeypatch.undo()
    os.mkfifo(tmp_path / "pipe")
    called = cli("prune", *PERCEPTRON, "--out", tmp_path / "pipe")
    assert (called.code, called.err.splitlines()[0]) == (2, "--out must be a file.")


def pk_plan(folder: Path) -> Path:
    (folder / "plan.json").write_text(pk.Plan().to_json())
    return folder / "plan.json"

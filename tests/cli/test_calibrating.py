"""Calibration data on the command line: the same as in Python, from code and from files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.cli.calibrating import Data, counted
from prunekit_plugins.cli.models import Subject
from tests.cli import toys
from tests.cli.conftest import Cli

SUBJECT = Subject("tests.cli.toys:blocks", toys.blocks().eval(), (torch.zeros(1, 4),), (), "random weights")
BLOCKS = ("prune", "tests.cli.toys:blocks", "--input", "1,4")


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return toys.blocks().eval()


def pruned(**options: Any) -> nn.Module:
    """The same in Python."""
    return pk.prune(seeded(), torch.zeros(1, 4), 0.5, **options).model


def same(path: Path, expected: nn.Module) -> bool:
    found = pk.load(seeded(), path).state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_data_choose_and_repair_as_in_python(cli: Cli, tmp_path: Path) -> None:
    out, data = tmp_path / "out.safetensors", ("--calibration", "tests.cli.toys:batches")
    called = cli(*BLOCKS, *data, "--ratio", 0.5, "--out", out, "--check", "--json")
    assert (called.code, called.err) == (0, "")
    assert same(out, pruned(calibration=toys.batches()))
    assert not same(out, pruned())
    repaired = called.data["compensation"]
    assert {layer["method"] for layer in repaired["layers"]} == {"least_squares"}
    assert repaired["output_error"][1] < repaired["output_error"][0]
    assert called.data["check"]["exact"] is True  # of the cut, before the weights were repaired
    assert called.data["protocol"]["arguments"]["importance"] == "calibrated"


@pytest.mark.slow
def test_every_switch_reaches_prune(cli: Cli, tmp_path: Path) -> None:
    out, data = (
        tmp_path / "out.safetensors",
        ("--calibration", "tests.cli.toys:batches", "--out", tmp_path / "out.safetensors"),
    )
    assert cli(*BLOCKS, *data, "--compensation", "none", "--no-batchnorm", "--json").data["compensation"] is None
    assert same(out, pruned(calibration=toys.batches(), compensation=None, reestimate_batchnorm=False))
    methods = ("--compensation", "constant_units", "--compensation", "bias", "--stages", 1, "--batches", 2)
    found = cli(*BLOCKS, *data, *methods, "--importance", "activation_energy", "--json").data
    assert {layer["method"] for layer in found["compensation"]["layers"]} == {"constant_units", "bias"}
    expected = pruned(
        calibration=pk.Batches(toys.batches(), limit=2),
        compensation=["constant_units", "bias"],
        stages=1,
        importance="activation_energy",
    )
    assert same(out, expected)
    shared = cli(*BLOCKS, *data, "--target", "macs=0.5", "--allocation", "dp", "--json").data
    model = pk.prune(
        seeded(), torch.zeros(1, 4), target={"macs": 0.5}, allocation="dp", calibration=toys.batches()
    ).model
    assert same(out, model)
    assert shared["protocol"]["arguments"]["allocation"] == "dp"


def test_batch_norms_stay_where_that_is_asked_for(cli: Cli) -> None:
    model = ("prune", "tests.cli.toys:normed", "--input", "2,4", "--calibration", "tests.cli.toys:batches", "--json")
    anew = cli(*model, "--compensation", "none").data["compensation"]["layers"]
    assert [(layer["consumer"], layer["method"]) for layer in anew] == [("1 batch norms", "batchnorm")]
    kept = cli(*model, "--no-batchnorm").data["compensation"]["layers"]
    assert {layer["method"] for layer in kept} == {"least_squares"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SEEN", "READ"])
def test_batches_may_be_any_iterable_or_say_how_they_are_read(cli: Cli, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.safetensors"
    called = cli(*BLOCKS, "--calibration", f"tests.cli.toys:{name}", "--out", out)
    assert called.code == 0, called.err
    assert same(out, pruned(calibration=toys.batches()))
    assert "reading calibration data\n" in called.out
    assert re.search(r"compensated: 7 layers, output error \S+ -> \S+\n  layer +method", called.out)


@pytest.mark.slow
def test_files_are_cut_into_batches(cli: Cli, tmp_path: Path) -> None:
    examples = torch.cat(toys.batches())
    numpy.save(tmp_path / "a.npy", examples.numpy())
    torch.save(examples, tmp_path / "a.pt")
    safetensors.torch.save_file({"images": examples}, tmp_path / "a.safetensors")
    for number, ending in enumerate((".npy", ".pt", ".safetensors")):
        file, out = tmp_path / f"a{ending}", tmp_path / f"{number}.safetensors"
        called = cli(*BLOCKS, "--calibration", file, "--batch-size", 12, "--out", out)
        assert called.code == 0, called.err
        assert same(out, pruned(calibration=toys.batches()))
    assert [len(batch) for batch in Data(str(file)).batches(SUBJECT).source] == [16, 16, 16, 12]
    assert [
        list(batch) for batch in Data(str(file), 40).batches(attrs.evolve(SUBJECT, keyword="input_ids")).source
    ] == [["input_ids"]] * 2


def test_several_tensors_of_a_file_are_keyword_inputs(cli: Cli, tmp_path: Path) -> None:
    tokens, weights = torch.randint(0, 2, (20, 5)), torch.randn(20, 5)
    safetensors.torch.save_file({"tokens": tokens, "weights": weights}, tmp_path / "a.safetensors")
    batches = Data(str(tmp_path / "a.safetensors"), 8).batches(SUBJECT).source
    assert [(batch["tokens"].shape, batch["weights"].shape) for batch in batches] == [((8, 5),) * 2] * 2 + [
        ((4, 5),) * 2
    ]
    called = cli(
        *("prune", "tests.cli.toys:tokens", "--input", "2,5:int64", "--input", "2,5"),
        *("--calibration", tmp_path / "a.safetensors", "--json"),
    )
    assert called.code == 0, called.err
    assert called.data["compensation"]["layers"] != []


@pytest.mark.slow
def test_a_recipe_holds_the_data(cli: Cli, tmp_path: Path) -> None:
    file, recipe, first, again = (tmp_path / n for n in ("a.npy", "r.toml", "a.safetensors", "b.safetensors"))
    numpy.save(file, torch.cat(toys.batches()).numpy())
    data = ("--calibration", file, "--batch-size", 10, "--batches", 5, "--stages", 2, "--compensation", "none")
    assert cli(*BLOCKS, *data, "--out", first, "--save-recipe", recipe).code == 0
    text = recipe.read_text()
    for line in ('importance = "calibrated"', "compensation = []", "stages = 2", "batch_size = 10", "batches = 5"):
        assert line in text
    assert cli("prune", "--recipe", recipe, "--out", again).code == 0
    assert first.read_bytes() == again.read_bytes()
    assert cli("prune", "--recipe", recipe, "--save-recipe", tmp_path / "second.toml").code == 0
    assert (tmp_path / "second.toml").read_text() == text
    numpy.save(file, torch.cat(toys.batches()).numpy() + 1)
    refused = cli("prune", "--recipe", recipe)
    assert refused.code == 1
    assert refused.err.startswith("The calibration data are not those of the recipe.")
    typed = cli("prune", "--recipe", recipe, "--calibration", "tests.cli.toys:batches", "--out", again)
    assert typed.code == 0, typed.err
    assert same(again, pruned(calibration=toys.batches(), compensation=None))


@pytest.mark.slow
def test_settings_of_the_project_hold_for_data(cli: Cli, tmp_path: Path) -> None:
    settings, out = tmp_path / "s.toml", tmp_path / "out.safetensors"
    settings.write_text('compensation = ["bias"]\nreestimate_batchnorm = false\nstages = 1\nuniform = true\n')
    called = cli(*BLOCKS, "--config", settings, "--calibration", "tests.cli.toys:batches", "--out", out)
    assert called.code == 0, called.err
    options = {"compensation": ["bias"], "reestimate_batchnorm": False, "stages": 1, "uniform": True}
    assert same(out, pruned(calibration=toys.batches(), **options))
    assert cli(*BLOCKS, "--config", settings, "--json").data["compensation"] is None


@pytest.mark.slow
def test_the_report_has_what_was_repaired(cli: Cli, tmp_path: Path) -> None:
    data = ("--calibration", "tests.cli.toys:batches")
    for ending in (".md", ".json", ".html"):
        assert cli(*BLOCKS, *data, "--report", tmp_path / f"report{ending}").code == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["method"] for row in found["repairs"]] == ["least_squares"] * 7
    assert found["output_error"][1] < found["output_error"][0]
    assert "## Compensation" in (tmp_path / "report.md").read_text()
    assert "Compensation" in (tmp_path / "report.html").read_text()
    assert cli(*BLOCKS, "--report", tmp_path / "report.md").code == 0
    assert "Compensation" not in (tmp_path / "report.md").read_text()


def test_progress_counts_the_batches_of_a_pass() -> None:
    told: list[tuple[int, int | None]] = []
    batches = counted(pk.Batches(toys.batches(), limit=2), lambda done, total: told.append((done, total)))
    pk.calibrate(seeded(), batches)
    assert told == [(1, 2), (2, 2)]


WRONG = {
    ("--calibration", "data"): (2, "The calibration data aren't named in a known way."),
    ("--calibration", "nosuch.npy"): (1, "There is no such file."),
    ("--calibration", "tests.cli.toys:batchez"): (2, "The module 'tests.cli.toys' has no 'batchez'."),
    ("--calibration", "nosuchmodule:batches"): (2, "There is no module 'nosuchmodule'."),
    ("--calibration", "tests.cli.toys:no_batches"): (2, "Calibration batches must be an iterable of batches."),
    ("--calibration", "tests.cli.toys:batches_raise"): (1, "The calibration data can't be made."),
    ("--calibration", "tests.cli.toys:batches", "--batch-size", "4"): (2, "--batch-size is for data in a file."),
    ("--calibration", "tests.cli.toys:batches", "--compensation", "leest"): (2, "No compensator"),
    ("--calibration", "tests.cli.toys:batches", "--stages", "0"): (2, "stages must be a positive integer."),
    ("--calibration", "tests.cli.toys:batches", "--batches", "0"): (2, "Usage"),
    ("--calibration", "tests.cli.toys:batches", "--allocation", "dq"): (2, "There is no allocation called 'dq'."),
    ("--stages", "2"): (2, "Compensation, stages and batches need --calibration."),
    ("--no-batchnorm",): (2, "Compensation, stages and batches need --calibration."),
}


@pytest.mark.parametrize("arguments", WRONG)
def test_what_is_wrong_is_told(cli: Cli, arguments: tuple[str, ...]) -> None:
    code, message = WRONG[arguments]
    called = cli(*BLOCKS, *arguments)
    assert (called.code, called.out.replace("reading calibration data\n", "")) == (code, ""), called.err
    assert called.err.startswith(message)


@pytest.mark.parametrize(
    "data", [{"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}, {}, torch.tensor(1.0), {"a": 3}, [torch.zeros(2)]]
)
def test_files_that_hold_no_examples_are_refused(tmp_path: Path, data: Any) -> None:
    torch.save(data, tmp_path / "a.pt")
    with pytest.raises(pk.ArgumentError, match=r"must hold a tensor|differ in their number of examples"):
        Data(str(tmp_path / "a.pt")).batches(SUBJECT)


@pytest.mark.parametrize("ending", ["pt", "npy", "safetensors"])
def test_files_that_are_broken_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(pk.CheckpointError, match="can't be read"):
        Data(str(path)).batches(SUBJECT)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Evil(), tmp_path / "a.pt")
    with pytest.raises(pk.CheckpointError, match="can't be read"):
        Data(str(tmp_path / "a.pt")).batches(SUBJECT)
    assert not (tmp_path / "ran").exists()

"""Latencies from a file: a table whose times are multiply-accumulates makes a target on latency one on these."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.budgets import LatencyTable, latency, write_latency_table
from prunekit_plugins.budgets.latency import LatencyCost
from prunekit_plugins.budgets.timetable import Timetable
from tests.core.test_workloads import INPUTS, llama, real_macs

X = torch.randn(4, 16)
SECOND = 1e-9
"""What a multiply-accumulate takes, in the tables of these tests."""


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype).eval()


def shapes(key: str) -> dict[str, list[int]]:
    return {name: json.loads(sizes) for name, sizes in re.findall(r"(\w+)=\w+(\[[\d, ]*\])", key)}


def work(key: str) -> float:
    """Multiply-accumulates of an operation, read off its key."""
    found = shapes(key)
    if key.startswith("aten::linear"):
        return math.prod(found["input"]) * found["weight"][0]
    if key.startswith(("aten::matmul", "aten::bmm")):
        first, second = list(found.values())[:2]
        return math.prod(first) * second[-1]
    return 0.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def no_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations take no time to measure here, and nothing is timed as a whole."""
    monkeypatch.setattr(Timetable, "_time", lambda table, run: 1e-6)
    monkeypatch.setattr(LatencyCost, "measure", lambda *args: (1.0, 1.0))


def counted(path: Path, factor: float = 1.0) -> LatencyTable:
    """The table of a file, with multiply-accumulates for times."""
    table = LatencyTable.load(path)
    return attrs.evolve(table, seconds={key: SECOND * work(key) for key in table.seconds}, factor=factor)


@pytest.mark.usefixtures("no_clock")
def test_a_table_for_outputs_that_may_shrink_serves_cuts_with_and_without_them(folder: Path) -> None:
    plain, both = folder / "plain.json", folder / "both.json"
    write_latency_table(llama(), INPUTS, plain)
    write_latency_table(llama(), INPUTS, both, free_outputs=["cache"])
    assert LatencyTable.load(plain).seconds.keys() < LatencyTable.load(both).seconds.keys()
    target = {"latency": 1.0}  # met as it is: the table is read, and nothing goes
    pk.prune(llama(), INPUTS, target=target, latency_table=both)
    pk.prune(llama(), INPUTS, target=target, latency_table=both, free_outputs=["cache"])
    with pytest.raises(pk.CheckpointError, match="lacks operations of this model"):
        pk.prune(llama(), INPUTS, target=target, latency_table=plain, free_outputs=["cache"])


def test_a_table_is_what_was_measured_and_travels(folder: Path) -> None:
    path = folder / "table.json"
    written = write_latency_table(net(), X, path)
    read = LatencyTable.load(path)
    assert (read.seconds, read.machine, read.factor) == (written.seconds, written.machine, written.factor)
    assert read.machine["threads"] == torch.get_num_threads()
    sizes = [shapes(key)["weight"] for key in read.seconds if key.startswith("aten::linear")]
    assert {(8, 16), (64, 16), (32, 64), (4, 8), (4, 4)} <= {tuple(size) for size in sizes}  # eighths, halves, all
    assert all(seconds > 0 for seconds in read.seconds.values())
    assert read.factor > 0


@pytest.mark.usefixtures("no_clock")
def test_a_target_is_met_by_what_the_table_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latency_table(net(), X, folder / "table.json")
    table = counted(folder / "table.json", factor=3.0)
    table.save(folder / "counted.json")

    def fails(*args: Any) -> Any:
        raise AssertionError("something was timed")

    monkeypatch.setattr(Timetable, "measure", fails)
    monkeypatch.setattr(LatencyCost, "measure", fails)
    whole = pk.prune(net(), X, 0.5).preview.costs["macs"][0]
    by_time = pk.prune(net(), X, target={"latency": 0.5}, latency_table=folder / "counted.json")
    by_work = pk.prune(net(), X, target={"macs": 0.5})
    assert by_time.plan.kept == by_work.plan.kept
    milliseconds = whole * SECOND * 3.0 * 1e3
    absolute = pk.prune(net(), X, target={"latency": f"{milliseconds / 2} ms"}, latency_table=table)
    assert absolute.plan.kept == by_work.plan.kept
    spent = by_work.preview.costs["macs"][1] * SECOND * 3.0 * 1e3
    (note,) = [note for note in by_time.report.notes if note.startswith("latency")]
    assert note.startswith(
        f"latency: predicted {spent:.3g} ms of {milliseconds:.3g} ms, by a table that was measured on"
    )
    assert by_time.protocol.arguments["latency_table"] == dict(table.machine)
    assert latency.measured  # elsewhere it is


@pytest.mark.usefixtures("no_clock")
def test_prefill_and_decoding_are_one_latency(folder: Path) -> None:
    workload = {"batch": 1, "length": 9, "decode": 4}
    write_latency_table(llama(), INPUTS, folder / "table.json", workload=workload)
    table, whole = counted(folder / "table.json"), real_macs(llama(), 1, 9, 4)
    model = llama()
    result = pk.prune(
        model, INPUTS, target={"latency": 0.8}, workload=workload, latency_table=table, prune_head_dims=False
    )
    small = real_macs(model, 1, 9, 4)
    assert 0.77 * whole < small <= 0.8 * whole
    (note,) = [note for note in result.report.notes if note.startswith("latency")]
    assert f"predicted {small * SECOND * 1e3:.3g} ms of {whole * SECOND * 1e3:.3g} ms" in note


def test_a_workload_is_timed_as_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model itself is called once for the first tokens, and once for each that is decoded."""
    model, calls = llama(), list[tuple[int, ...]]()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    workload = {"batch": 3, "length": 6, "decode": 2}
    here = sys.modules[LatencyCost.__module__]
    monkeypatch.setattr(here, "ROUNDS", 1)
    monkeypatch.setattr(here, "WARM_UP", 0)
    monkeypatch.setattr(Timetable, "_time", lambda table, run: 1e-6)
    write_latency_table(model, INPUTS, folder / "table.json", workload=workload)
    assert calls[-6:] == [(3, 6), (3, 1), (3, 1)] * 2  # two models in turns, both of them this one


@pytest.mark.usefixtures("no_clock")
def test_a_table_of_another_model_or_dtype_is_refused(folder: Path) -> None:
    path = folder / "table.json"
    write_latency_table(net(), X, path)
    for model, inputs in ((net(torch.bfloat16), X.bfloat16()), (net(), torch.randn(5, 16))):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(pk.CheckpointError, match="lacks operations of this model") as error:
            pk.prune(model, inputs, target={"latency": 0.5}, latency_table=path)
        assert re.match(r"\d+ operations with these shapes and dtypes, first: aten::\w+", error.value.why)
        assert "--latency-table" in error.value.hint
        assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(pk.CheckpointError, match="lacks operations"):
        pk.prune(llama(), INPUTS, target={"latency": 0.5}, latency_table=path, workload={"length": 7})


def test_what_is_no_table_is_refused(folder: Path) -> None:
    with pytest.raises(pk.CheckpointError, match="no such file"):
        pk.prune(net(), X, target={"latency": 0.5}, latency_table=folder / "none.json")
    for text, message in (
        ("[]", "is no table of latencies"),
        ('{"format": 9}', "of another version"),
        ("{", "no table"),
    ):
        (folder / "wrong.json").write_text(text)
        with pytest.raises(pk.CheckpointError, match=message):
            LatencyTable.load(folder / "wrong.json")
    table = LatencyTable({}, {}, frozenset(), 1.0)
    with pytest.raises(pk.ArgumentError, match="for a target on latency"):
        pk.prune(net(), X, target={"macs": 0.5}, latency_table=table)


def test_operations_that_cannot_run_alone_count_nothing() -> None:
    table, missing = LatencyTable({}, {"a": 1.0}, frozenset({"b"}), 1.0), list[str]()
    assert [table.look_up(key, missing) for key in "abc"] == [1.0, None, None]
    assert missing == ["c"]

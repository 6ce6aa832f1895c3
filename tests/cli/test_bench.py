"""``prunekit bench``: numbers that are known, before and after, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunekit as pk
from tests.cli import toys
from tests.cli.conftest import Cli
from tests.models import small_llama

PERCEPTRON = ("tests.cli.toys:perceptron", "--input", "1,4")


def test_before_and_after_side_by_side(cli: Cli, tmp_path: Path) -> None:
    small, plan = tmp_path / "small.safetensors", tmp_path / "plan.json"
    assert cli("prune", *PERCEPTRON, "--out", small, "--plan", plan).code == 0
    for option, path in (("--weights", small), ("--plan", plan)):
        data = cli("bench", *PERCEPTRON, option, path, "--rounds", 3, "--batch", 5, "--threads", 1, "--json").data
        before, after = data["before"], data["after"]
        assert (before["macs"], after["macs"]) == (5 * 56, 5 * 28)
        assert (before["params"], after["params"]) == (67, 35)
        # weights, input, hidden before and after relu, of 8 and of 4 neurons
        assert before["peak_memory_bytes"] == 4 * (67 + 5 * 4 + 2 * 5 * 8)
        assert after["peak_memory_bytes"] == 4 * (35 + 5 * 4 + 2 * 5 * 4)
        assert len(before["seconds"]) == data["rounds"] == 3
        assert before["samples_per_second"] == pytest.approx(5 / before["latency_seconds"])
        assert data["threads"] == 1


def test_one_model_alone_as_a_table(cli: Cli) -> None:
    called = cli("bench", *PERCEPTRON, "--rounds", 2, "--warm-up", 0, "--threads", 2)
    assert called.code == 0
    lines = called.out.splitlines()
    assert lines[1] == "tests.cli.toys:perceptron, weights as built, input 1,4, on the CPU, threads: 2"
    assert lines[2].split() == ["cost", "now", "left"]
    assert lines[-2].split() == ["parameters", "67"]
    assert lines[-1] == "latency: median of 2 forward passes in turns after 0 to warm up, in inference mode"


def test_a_table_of_latencies_is_written_and_pruned_with(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    table, calls = tmp_path / "table.json", ("--workload", "batch=64")
    assert cli("bench", *PERCEPTRON, "--rounds", 1, "--latency-table", table, *calls).code == 0
    read = json.loads(table.read_text())
    assert any("float32[64, 4]" in key for key in read["seconds"])
    by_table = ("prune", *PERCEPTRON, "--target", "latency=1.0", "--latency-table", table, *calls)
    assert "measuring operations" in cli(*by_table[:6]).out
    assert "measuring operations" not in cli(*by_table).out  # they are read
    read["seconds"] = {key: 1.0 if key.startswith("aten::linear") else 0.0 for key in read["seconds"]}
    read["factor"] = 0.5
    table.write_text(json.dumps(read))
    called = cli("prune", *PERCEPTRON, "--target", "latency=0.99", "--latency-table", table, *calls)
    assert called.code == 2  # of this table no size saves anything
    assert "the smallest model has latency=1e+03 ms (100.0% of 1e+03 ms)" in called.err
    other = cli("prune", *PERCEPTRON, "--target", "latency=0.9", "--latency-table", table)
    assert "The table of latencies lacks operations of this model." in other.err


def test_a_workload_is_what_is_measured(cli: Cli) -> None:
    data = cli("bench", *PERCEPTRON, "--workload", "batch=5", "--rounds", 2, "--json").data
    assert data["now"]["macs"] == 5 * 56
    assert data["now"]["peak_memory_bytes"] == 4 * (67 + 5 * 4 + 2 * 5 * 8)
    assert data["now"]["samples_per_second"] == pytest.approx(5 / data["now"]["latency_seconds"])
    assert data["workload"] == {"batch": 5}
    *_, timing, workload = cli("bench", *PERCEPTRON, "--workload", "batch=5", "--rounds", 2).out.splitlines()
    assert timing.startswith("latency: median of 2 runs of the workload in turns")
    assert workload == ("workload: 5 examples; latency, MACs and peak memory are those of all its calls together")


def test_tokens_that_are_decoded_are_measured_too(cli: Cli, tmp_path: Path) -> None:
    small_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2).save_pretrained(str(tmp_path / "llama"))
    folder = ("bench", f"hf:{tmp_path / 'llama'}", "--rounds", 1, "--json")

    def macs(calls: str) -> float:
        return float(cli(*folder, "--workload", f"batch=2,{calls}").data["now"]["macs"])

    def by_hand(queries: int, keys: int) -> int:
        """Three layers of four heads by eight, two pairs, 32 neurons; logits of 64 ids; scores and their sums."""
        layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 32
        return 2 * queries * (3 * layer + 32 * 64 + 3 * 2 * 32 * keys)

    assert macs("length=6") == by_hand(6, 6)
    assert macs("length=6,decode=3") == by_hand(6, 6) + sum(by_hand(1, keys) for keys in (7, 8, 9))


@pytest.mark.parametrize("command", ["bench", "doctor"])
@pytest.mark.parametrize("option", ["--plan", "--weights"])
def test_the_table_says_what_stands_beside_what(command: str, option: str, cli: Cli, tmp_path: Path) -> None:
    model = toys.perceptron()
    plan = pk.prune(model, torch.randn(1, 4)).plan
    pk.save(model, tmp_path / "shards", plan=plan, max_shard_size=100)
    plan.save(tmp_path / "plan.json")
    given = tmp_path / ("shards" if option == "--weights" else "plan.json")
    called = cli(command, *PERCEPTRON, option, given, "--rounds", 1)
    assert called.code == 0, called.err
    assert f"tests.cli.toys:perceptron, weights as built beside {given}, input 1,4" in called.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", "a", "--weights", "b"), "Give --plan or --weights, not both."),
        (("--plan", "nowhere.json"), "There is no such file."),
        (("--rounds", 0), "must be positive"),
        (("--batch", 0), "must be positive"),
        (("--workload", "prompt=2"), "A workload has no 'prompt'."),
        (("--workload", "batch=2,decode=1"), "The model returns no cache to decode with."),
        (("--device", "abacus"), "The --device isn't there."),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[object, ...], message: str) -> None:
    called = cli("bench", *PERCEPTRON, *arguments)
    assert called.code == 2
    assert message in called.err


def test_a_gpu_that_is_not_there(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert "got 'cuda', PyTorch finds cpu" in cli("bench", *PERCEPTRON, "--device", "cuda").err

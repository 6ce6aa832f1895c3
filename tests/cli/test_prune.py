from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from rich.markup import render
from torch import nn

import prunekit as pk
from prunekit_plugins.cli import prunekit_commands
from prunekit_plugins.cli.commands import prune as prune_command
from tests.cli import toys
from tests.cli.conftest import Cli
from tests.models import small_llama

PERCEPTRON = ("tests.cli.toys:perceptron", "--input", "1,4")


def seeded(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return toys.perceptron()


def test_prune_writes_a_checkpoint_that_loads_into_a_fresh_model(cli: Cli, tmp_path: Path) -> None:
    out, plan_file = tmp_path / "small.safetensors", tmp_path / "plan.json"
    called = cli("prune", *PERCEPTRON, "--ratio", 0.5, "--out", out, "--plan", plan_file, "--check", "--json")
    assert (called.code, called.err) == (0, "")
    # 4 neurons of 8 stay: 4*4 + 4 + 4*3 + 3 parameters, 4*4 + 4*3 MACs
    assert called.data["params"] == {"before": 67, "after": 35}
    assert called.data["costs"]["macs"] == {"before": 56, "after": 28}
    assert called.data["pruned"] == {"first": {"before": 8, "after": 4}}
    assert called.data["layers"]["second.weight"] == {"before": [3, 8], "after": [3, 4]}
    assert called.data["check"]["exact"] is True
    assert (called.data["out"], called.data["plan"]) == (str(out), str(plan_file))
    # the weights are those of seed 0
    original = seeded()
    loaded = pk.load(seeded(1), out)
    kept = pk.Plan.from_json(plan_file.read_text()).kept["first"]
    assert len(kept) == 4
    assert loaded.first.weight.tolist() == original.first.weight[list(kept)].tolist()
    assert loaded.second.weight.tolist() == original.second.weight[:, list(kept)].tolist()
    x = torch.randn(7, 4)
    by_hand = torch.relu(original.first(x))[:, list(kept)] @ original.second.weight[:, list(kept)].T
    torch.testing.assert_close(loaded(x), by_hand + original.second.bias)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "small.safetensors"]


def test_prune_starts_from_given_weights(cli: Cli, tmp_path: Path) -> None:
    original = seeded(3)
    safetensors.torch.save_file(original.state_dict(), tmp_path / "in.safetensors")
    out = tmp_path / "small.safetensors"
    assert cli("prune", *PERCEPTRON, "--weights", tmp_path / "in.safetensors", "--out", out).code == 0
    pk.prune(original, torch.randn(1, 4), 0.5)
    loaded = pk.load(seeded(4), out)
    assert loaded.first.weight.tolist() == original.first.weight.tolist()
    assert loaded.second.weight.tolist() == original.second.weight.tolist()


def test_prune_a_torchvision_model_to_a_target_in_plain_text(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    model = ("torchvision:resnet18", "--input", "1,3,64,64")
    called = cli("prune", *model, "--target", "macs=0.5", "--round-to", 8, "--out", out, "--check")
    assert called.code == 0, called.err
    assert "\x1b" not in called.out
    assert all(ord(letter) < 128 for letter in called.out)
    assert "exact: relative error" in called.out
    assert f"written: {out}" in called.out
    assert "11,689,512" in called.out  # the published number of parameters
    plan = pk.read_plan(out)
    assert all(len(cut.kept) % 8 == 0 for cut in plan.cuts)
    assert len(plan.cuts) > 8


def test_options_reach_the_pruner(cli: Cli) -> None:
    model = ("prune", "tests.cli.toys:blocks", "--input", "1,4", "--json")
    whole = cli(*model, "--ratio", 0.5).data["pruned"]
    assert {name: sizes["after"] for name, sizes in whole.items()} == {
        "stem#stream": 3,
        "blocks.0.1": 5,
        "blocks.1.1": 5,
        "blocks.2.1": 5,
    }
    ignored = cli(*model, "--ratio", 0.5, "--ignore", "blocks.0", "--ignore", "stem").data
    assert sorted(ignored["pruned"]) == ["blocks.1.1", "blocks.2.1"]
    assert "ignored layer" in ignored["left"]["blocks.0.1"]
    ranked = cli(*model, "--ratio", 0.5, "--global").data["pruned"]
    assert sum(s["before"] - s["after"] for s in ranked.values()) == 18  # half of 6 + 3 * 10
    rounded = cli(*model, "--ratio", 0.5, "--round-to", 2).data["pruned"]
    assert {sizes["after"] % 2 for sizes in rounded.values()} == {0}


def test_groups_that_are_not_exact_are_listed(cli: Cli) -> None:
    called = cli("prune", "tests.cli.toys:blocks", "--input", "1,4", "--ratio", 0.5)
    assert called.code == 0
    assert "not exact: 1 pruned groups under a norm, softmax or mean" in called.out
    assert "not exact" not in cli("prune", *PERCEPTRON, "--ratio", 0.5).out


def test_several_inputs_and_dtypes(cli: Cli) -> None:
    model = ("prune", "tests.cli.toys:tokens", "--input", "2,5:int64", "--input", "2,5", "--json")
    called = cli(*model)
    assert called.code == 0, called.err
    assert called.data["inputs"] == ["2,5:int64", "2,5"]
    assert called.data["layers"]["embedding.weight"] == {"before": [2, 6], "after": [2, 3]}


def test_without_out_nothing_is_written(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called = cli("prune", *PERCEPTRON)
    assert called.code == 0
    assert "nothing was written" in called.out
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_exact_fails_the_check(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*args: object, **kwargs: object) -> pk.PruneResult:
        result = pk.prune(*args, **kwargs)  # type: ignore[arg-type]
        with torch.no_grad():
            result.model.second.bias += 1.0  # type: ignore[operator]
        return result

    monkeypatch.setattr(prune_command, "prune_model", spoilt)
    called = cli("prune", *PERCEPTRON, "--check", "--out", tmp_path / "small.safetensors")
    assert called.code == 1
    assert called.out == ""
    assert called.err.startswith("The pruned model is not exact; nothing was written.")
    assert "NOT exact" in called.err
    assert list(tmp_path.iterdir()) == []


WRONG_USAGE = {
    ("torchvision:resnet5",): "torchvision has no model 'resnet5'.\n  what to do: did you mean 'resnet50'",
    ("resnet50",): "The model isn't named in a known way.",
    ("nosuchmodule:factory",): "There is no module 'nosuchmodule'.",
    ("tests.cli.toys:perceptrom",): "The module 'tests.cli.toys' has no 'perceptrom'.",
    ("tests.cli.toys:no_module",): "The factory must return an nn.Module.",
    ("tests.cli.toys:perceptron",): "The inputs of this model aren't known.",
    ("hf:nosuchfolder",): "An hf: model is given by a local folder that holds a config.json.",
    (*PERCEPTRON, "--input", "1,x"): "An --input must be positive sizes with commas between them.\n  why: got '1,x'",
    (*PERCEPTRON, "--input", "1,0"): "An --input must be positive sizes",
    (*PERCEPTRON, "--input", "1,4:int63"): "An --input has an unknown dtype.",
    (*PERCEPTRON, "--target", "macs"): "A --target must be a cost model, an equals sign and a positive number.",
    (*PERCEPTRON, "--target", "macs=-1"): "A --target must be",
    (*PERCEPTRON, "--target", "mac=0.5"): "No cost model is registered as 'mac'.\n  what to do: did you mean 'macs'?",
    (*PERCEPTRON, "--target", "macs=0.5", "--target", "macs=0.4"): "A --target is given twice.",
    (*PERCEPTRON, "--target", "macs=0.001"): "The target can't be reached.",
    (*PERCEPTRON, "--target", "macs=0.5", "--ratio", "0.5"): "Give --ratio or --target, not both.",
    (*PERCEPTRON, "--workload", "batch"): "A --workload is names with whole numbers.\n  why: got 'batch'",
    (*PERCEPTRON, "--workload", "batch=2,batch=3"): "A --workload is names with whole numbers.",
    (*PERCEPTRON, "--workload", "length=0"): "A workload is a table of whole numbers.",
    (*PERCEPTRON, "--latency-table", "nowhere.json"): "There is no such file.",
    (*PERCEPTRON, "--ratio", "1.5"): "ratio must lie in [0, 1).\n  why: got 1.5",
    (*PERCEPTRON, "--round-to", "0"): "--round-to must be a positive integer.",
    (*PERCEPTRON, "--importance", "magnitud"): "No importance is registered as 'magnitud'.",
    (*PERCEPTRON, "--ignore", "frist"): "The model has no module named 'frist'.\n  what to do: did you mean 'first'?",
    (*PERCEPTRON, "--out", "nosuchfolder/x"): "The folder for --out doesn't exist.",
    (*PERCEPTRON, "--out", "."): "--out must be a file.",
    (*PERCEPTRON, "--ratio", "half"): "Usage: prunekit prune",
    (): "Usage: prunekit prune",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USAGE.items(), ids=lambda value: str(value)[:60])
def test_wrong_usage_exits_with_2_and_says_why(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    called = cli("prune", *arguments)
    assert called.code == 2
    assert called.out == ""
    assert called.err.startswith(message)


def test_failures_exit_with_1_and_say_why(cli: Cli, tmp_path: Path) -> None:
    cases = {
        ("tests.cli.toys:raises",): "The model can't be built.\n  where: tests.cli.toys:raises\n  why: OSError: no we",
        ("tests.cli.toys:fixed", "--input", "1,4"): "Nothing can be pruned.",
        ("tests.cli.toys:perceptron", "--input", "1,5"): "The model's forward pass raised on the example inputs.",
        (*PERCEPTRON, "--weights", "nosuchfile"): "There is no such file.",
    }
    for arguments, message in cases.items():
        called = cli("prune", *arguments)
        assert (called.code, called.out) == (1, ""), arguments
        assert called.err.splitlines()[0] == message.splitlines()[0]
        assert message in called.err


def test_weights_of_another_model_are_refused(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    states = {
        "second.bias is missing": {k: v for k, v in seeded().state_dict().items() if k != "second.bias"},
        "third isn't in the model": {**seeded().state_dict(), "third": torch.zeros(1)},
        "size mismatch for first.bias": {**seeded().state_dict(), "first.bias": torch.zeros(9)},
    }
    for message, state in states.items():
        safetensors.torch.save_file(state, path)
        called = cli("prune", *PERCEPTRON, "--weights", path)
        assert called.code == 1
        assert called.err.startswith("The weights are for another model.")
        assert message in called.err
    path.write_bytes(b"no safetensors")
    assert "corrupt" in cli("prune", *PERCEPTRON, "--weights", path).err


def test_the_plan_file_is_json_that_applies_elsewhere(cli: Cli, tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    assert cli("prune", *PERCEPTRON, "--plan", plan_file).code == 0
    assert json.loads(plan_file.read_text())["groups"]["first"]["size"] == 8
    other = pk.Plan.from_json(plan_file.read_text()).apply(seeded(9))
    assert tuple(other(torch.randn(2, 4)).shape) == (2, 3)
    assert tuple(other.first.weight.shape) == (4, 4)


def test_what_is_blocked_and_is_not_there_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_BLOCK", "gone")
    called = cli("prune", *PERCEPTRON, "--block", "prunekit:dmeo", "--json")
    assert (called.code, called.data["pruned"] != {}) == (0, True)
    assert sorted(called.err.splitlines()) == [
        "PRUNEKIT_BLOCK blocks gone, which isn't installed",
        "an argument blocks prunekit:dmeo, which isn't installed",
    ]


def test_random_weights_are_pruned_only_where_that_is_said(cli: Cli, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra of its own")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=10, architectures=["BertModel"], **sizes)
    config.save_pretrained(str(tmp_path))
    refused = cli("prune", f"hf:{tmp_path}", "--input", "1,7:int64")
    assert refused.code == 2
    assert "The folder holds no weights." in refused.err
    assert "--random-weights" in refused.err
    called = cli("prune", f"hf:{tmp_path}", "--input", "1,7:int64", "--random-weights", "--json")
    assert (called.code, called.data["weights"]) == (0, "random weights")
    transformers.BertModel(config).save_pretrained(str(tmp_path))
    read = cli("prune", f"hf:{tmp_path}", "--input", "1,7:int64", "--json")
    assert (read.code, read.data["weights"]) == (0, str(tmp_path))


def test_a_model_that_is_named_has_random_weights_which_is_told(cli: Cli) -> None:
    called = cli("prune", "torchvision:squeezenet1_1", "--input", "1,3,64,64")
    assert called.code == 0
    assert called.err == (
        "torchvision:squeezenet1_1 has random weights, so what goes means nothing: --weights FILE reads yours\n"
    )


def test_flags_about_outputs_heads_and_sizes_reach_the_pruner(cli: Cli, tmp_path: Path) -> None:
    small_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2).save_pretrained(str(tmp_path / "big"))
    model = ("prune", f"hf:{tmp_path / 'big'}", "--serve", "none")
    told = cli(*model)
    assert "--free-output cache releases it" in told.out
    plain = cli(*model, "--json").data
    assert not any("head_dim" in name for name in plain["pruned"])
    free = cli(*model, "--json", "--free-output", "cache").data
    assert any("head_dim" in name for name in free["pruned"])
    whole = cli(
        *model, "--json", "--free-output", "cache", "--no-head-dims", "--heads", "--head-pruning-ratio", 0.5
    ).data
    assert not any("head_dim" in name for name in whole["pruned"])
    arguments = whole["protocol"]["arguments"]
    assert (arguments["prune_num_heads"], arguments["prune_head_dims"], arguments["head_pruning_ratio"]) == (
        True,
        False,
        0.5,
    )
    assert any("heads" in name for name in whole["pruned"])
    least = cli(*model, "--json", "--max-pruning-ratio", 0.25, "--uniform").data["pruned"]
    assert all(sizes["after"] >= 0.75 * sizes["before"] for sizes in least.values())


def test_costs_are_counted_for_a_workload(cli: Cli, tmp_path: Path) -> None:
    small_llama(hidden_size=32, num_attention_heads=4, num_key_value_heads=2).save_pretrained(str(tmp_path / "big"))
    model = ("prune", f"hf:{tmp_path / 'big'}", "--random-weights", "--target", "macs=0.9")
    one = cli(*model, "--workload", "batch=1,length=24", "--json").data
    four = cli(*model, "--workload", "batch=4,length=24", "--json").data
    assert four["costs"]["macs"]["before"] == 4 * one["costs"]["macs"]["before"]
    assert one["protocol"]["arguments"]["workload"] == {"batch": 1, "length": 24}
    assert "costs are counted for a workload: 4 examples, 24 tokens each" in four["notes"]


def test_help_is_the_same_with_and_without_markup() -> None:
    for name, command in prunekit_commands().items():
        click_command = typer.main.get_command(_application(command.load() if hasattr(command, "load") else command))
        for parameter in click_command.params:
            text = getattr(parameter, "help", None) or ""
            assert render(text).plain == text, f"{name} {parameter.name}"


def _application(function: Callable[..., Any]) -> typer.Typer:
    application = typer.Typer()
    application.command()(function)
    return application

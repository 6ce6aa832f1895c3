"""What is said to whoever typed a command names flags, not arguments of Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli import prunekit_commands
from prunekit_plugins.cli.command import LazyCommand
from prunekit_plugins.cli.options.flags import Flags, speaking, words
from tests.cli.conftest import Cli

PERCEPTRON = ("tests.cli.toys:perceptron", "--input", "1,4")


def flags(name: str) -> Flags:
    functions = prunekit_commands()
    loaded = [
        found.load() if isinstance(found, LazyCommand) else found for found in (functions[name], functions["prune"])
    ]
    return Flags.of(name, *loaded)


PRUNE = {
    "ratio=0.5 removes units; ratio=0.25.": "--ratio 0.5 removes units; --ratio 0.25.",
    'for example target={"macs": 0.5}': "for example --target macs=0.5",
    "target={'macs': 0.5, 'latency': '20ms'}": "--target macs=0.5 --target latency=20ms",
    'by="depth" or by="both"': "--by depth or --by both",
    "a higher number in target= helps": "a higher number in --target helps",
    "prune_num_heads=True takes whole heads": "--heads takes whole heads",
    "prune with prune_head_dims=False": "prune with --no-head-dims",
    "global_pruning=False, keep_names=False": "--local, --renumber",
    "ignored_layers=['a', 'b']": "--ignore a --ignore b",
    "ignored_layers=[...] with the layers": "--ignore LAYER with the layers",
    "free_outputs=[...] releases those": "--free-output NAME releases those",
    "calibration=batches measures them": "--calibration DATA measures them",
    "compensation=None, reestimate_batchnorm=False": "--compensation none, --no-batchnorm",
    'serve={"name": "vllm", "tensor_parallel": 2}': "--serve vllm,tensor_parallel=2",
    'prune(..., serve="gguf") gives': "prune with --serve gguf gives",
    "ignored_layers, max_pruning_ratio and round_to hold": "--ignore, --max-pruning-ratio and --round-to hold",
    "branches= or branch_ratio= besides": "--branch or --branch-ratio besides",
    "in Python logits=lambda outputs: ...": "in Python logits=lambda outputs: ...",
    "model.round_to.weight, ./round_to.txt": "model.round_to.weight, ./round_to.txt",
    "target == ratio": "target == ratio",
    'workload={"batch": 8, "length": 512}': "--workload batch=8,length=512",
    "expert_importance=Criterion(alpha=3) scores": "--expert-importance NAME[,ARG=VALUE] scores",
}


@pytest.mark.parametrize(("python", "typed"), PRUNE.items())
def test_arguments_are_flags(python: str, typed: str) -> None:
    assert flags("prune").words(python) == typed
    assert words(python) == python  # where no command runs


def test_a_command_has_flags_of_its_own_and_those_of_prune_where_pruning_is_meant() -> None:
    distill = flags("distill")
    assert distill.words('weights={"hidden": 1, "logits": 0.5}') == "--loss hidden=1 --loss logits=0.5"
    assert distill.words("a lower learning rate (lr=)") == "a lower learning rate (--lr)"
    assert distill.words("There is nothing in held_out.") == "There is nothing in --held-out."
    assert distill.words("component=... names one") == "component=... names one"
    assert flags("export").words("prune with prune_head_dims=False") == "prune with --no-head-dims"
    assert flags("doctor").words('prune with align="auto"') == "prune with --align auto"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--by", "depth"), ('by="depth"', "--by depth needs a target.")),
        (("--round-to", 0), ("round_to", "--round-to must be")),
        (("--stages", 2), ("calibration=", "--calibration")),
        (
            ("--compensation", "least_squares", "--calibration", "tests.cli.toys:batches", "--stages", 0),
            ("=", "stages"),
        ),
        (("--importance", "calibrated"), ("calibration=batches", "--calibration DATA")),
        (("--branch-ratio", 0.5, "--target", "macs=0.5", "--by", "depth"), ("branch_ratio", "--branch-ratio")),
    ],
)
def test_an_error_at_a_prompt_names_flags(cli: Cli, arguments: tuple[object, ...], told: tuple[str, str]) -> None:
    called = cli("prune", *PERCEPTRON, *arguments)
    assert called.code == 2
    assert told[0] not in called.err
    assert told[1] in called.err


def test_what_others_raised_is_quoted_as_it_is() -> None:
    def fail() -> None:
        try:
            raise ValueError("batch_size=4 and ratio=3 don't fit")
        except ValueError as error:
            raise pk.ArgumentError("It raised.", why=f"ValueError: {error}", hint="give ratio=0.5") from error

    with pytest.raises(pk.ArgumentError) as caught, speaking(lambda: flags("prune")):
        fail()
    assert caught.value.why == "ValueError: batch_size=4 and ratio=3 don't fit"
    assert caught.value.hint == "give --ratio 0.5"


def test_reasons_and_notes_at_a_prompt_name_flags(cli: Cli) -> None:
    called = cli("prune", "tests.models:Encoder", "--input", "1,6,10", "--all")
    assert called.code == 0, called.err
    assert "prune_num_heads" not in called.out
    assert "--heads takes them" in called.out


def test_in_python_an_error_names_arguments_after_a_command_ran(cli: Cli, tmp_path: Path) -> None:
    cli("prune", *PERCEPTRON, "--round-to", 0)
    with pytest.raises(pk.ArgumentError, match="round_to"):
        pk.prune(torch.nn.Linear(2, 2), torch.ones(1, 2), round_to=0)

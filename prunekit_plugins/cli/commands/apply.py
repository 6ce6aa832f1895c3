"""``prunekit apply``: a plan and a checkpoint on disk in, the pruned checkpoint out; no model is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from prunekit import prune_checkpoint, read_plan, read_protocol
from prunekit.plugin import ArgumentError, CheckpointError, Plan, Protocol
from prunekit_plugins.checkpoints.destination import check_format, check_name_of_folder
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_writable
from prunekit_plugins.cli.output import Output

STEPS = 1000
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")
"""Endings of files that hold weights, which aren't copied along."""


def apply(
    plan: Annotated[Path, typer.Argument(help="A plan (JSON), or a checkpoint that holds one.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(help="Weights of the unpruned model: safetensors, or a folder.", show_default=False)
    ],
    destination: Annotated[
        Path, typer.Argument(help="File to write; a folder where the source is one.", show_default=False)
    ],
    max_shard_size: Annotated[
        str | None, typer.Option(help="Bytes of a file, such as 5GB; makes a folder.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Prune a checkpoint on disk by a plan, without building the model: safetensors in, safetensors out."""
    output = Output(as_json)
    if not plan.exists():
        raise CheckpointError(NO_FILE, where=str(plan), hint=CHECK_PATH)
    _check_destination(destination, folder=source.is_dir() or max_shard_size is not None)
    protocol = None if plan.suffix == ".json" else read_protocol(plan)
    written = convert(output, source, destination, read_plan(plan), protocol, max_shard_size)
    output.result({"source": str(source), "out": str(destination), "bytes": written})


def _check_destination(destination: Path, *, folder: bool) -> None:
    if folder:
        check_name_of_folder(destination)
    else:
        check_format(destination)
    check_writable(destination, "DESTINATION", folder=folder)


def convert(
    output: Output,
    source: Path,
    destination: Path,
    plan: Plan,
    protocol: Protocol | None,
    max_shard_size: str | None = None,
    repaired: Mapping[str, torch.Tensor] | None = None,
) -> int:
    """Applies a plan to a checkpoint with a progress bar, and copies what else is in its folder (configuration,
    tokenizer).

    Returns:
        Bytes of the weights that were written.
    """
    with output.progress(f"pruning {source}", STEPS) as advance:
        shown = 0

        def progress(done: int, total: int) -> None:
            nonlocal shown
            while shown < STEPS * done // max(1, total):
                advance()
                shown += 1

        prune_checkpoint(
            *(source, destination, plan),
            protocol=protocol,
            max_shard_size=max_shard_size,
            progress=progress,
            repaired=repaired,
        )
    copied = _copy_others(source, destination) if source.is_dir() and destination.is_dir() else []
    files = sorted(destination.glob("*.safetensors")) if destination.is_dir() else [destination]
    written = sum(file.stat().st_size for file in files)
    output.line(f"written: {destination} ({written:,} bytes in {len(files)} files)", good=True)
    if copied:
        output.line(f"copied along: {', '.join(copied)}")
    return written


def _copy_others(source: Path, destination: Path) -> list[str]:
    """Copies the files of a folder that hold no weights and aren't there yet."""
    copied = []
    for file in sorted(source.iterdir()):
        target = destination / file.name
        if file.is_file() and not file.name.endswith(WEIGHTS) and not target.exists():
            temporary = target.with_name(f".{target.name}.part")
            shutil.copyfile(file, temporary)
            os.replace(temporary, target)
            copied.append(file.name)
    return copied


def source_of(name: str, weights: Path | None) -> Path:
    """Finds the weights on disk of a MODEL argument: what --weights says, or the folder of ``hf:FOLDER``.

    Raises:
        ArgumentError: Neither names them.
    """
    prefix, _, rest = name.partition(":")
    if weights is None and prefix != "hf":
        raise ArgumentError("--on-disk needs the weights.", hint="--weights FILE, or an hf:FOLDER that holds them")
    return weights if weights is not None else Path(rest)

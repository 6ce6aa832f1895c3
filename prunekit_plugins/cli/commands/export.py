"""``prunekit export``: a model, pruned or not, in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from prunekit import load, read_plan
from prunekit.plugin import ArgumentError, CheckpointError, nearest
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_writable, read_inputs
from prunekit_plugins.cli.models import build, fill
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.export import export_onnx, export_program

FORMATS = {"onnx": export_onnx, "torch-export": export_program}


def export(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="File to write.")],
    inputs: options.Inputs = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights: a checkpoint that prunekit wrote (file or folder), or those of the unpruned model.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan (JSON, or a checkpoint's) to prune the model with first.", show_default=False),
    ] = None,
    to: Annotated[str, typer.Option("--format", metavar="FORMAT", help="onnx or torch-export.")] = "onnx",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative error; 1e-4 in single precision.", show_default=False),
    ] = None,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> None:
    """Write a model as ONNX or as a program of torch.export, and compare what it computes with the model."""
    specs = read_inputs(inputs or ())
    if to not in FORMATS:
        raise ArgumentError("There is no such --format.", why=f"got {to!r}", hint=nearest(to, FORMATS))
    check_writable(out, "--out")
    output = Output(as_json)
    registry = project_registry(block, config, plugin)
    with output.working(f"building {model}"):
        subject = build(model, specs)
        if weights is not None and (weights.is_dir() or _is_pruned(weights)):
            if plan is not None:
                raise ArgumentError("Give --plan or the weights of a pruned model, not both.", where=str(weights))
            load(subject.model, weights, registry=registry)
        elif weights is not None:
            fill(subject.model, weights)
        if plan is not None:
            read_plan(plan).apply(subject.model, registry=registry)
    source = str(weights or subject.weights) + (f" cut by {plan}" if plan is not None else "")
    subject = attrs.evolve(subject, weights=source)
    with output.working(f"exporting {model}"):
        found = FORMATS[to](subject.model, subject.inputs, out, tolerance=tolerance)
    output.line(f"{subject}: {sum(p.numel() for p in subject.model.parameters()):,} parameters")
    output.line(f"compared with the model: {found}", good=True)
    output.line(f"written: {out} ({found.bytes:,} bytes)", good=True)
    output.result(
        {
            "model": subject.name,
            "format": to,
            "out": str(out),
            "bytes": found.bytes,
            "error": found.error,
            "tolerance": found.tolerance,
            "outputs": found.outputs,
        }
    )


def _is_pruned(weights: Path) -> bool:
    """Whether a file is a checkpoint that prunekit wrote."""
    try:
        read_plan(weights)
    except CheckpointError as error:
        if error.headline == "The file is not a prunekit checkpoint.":
            return False
        raise
    return True

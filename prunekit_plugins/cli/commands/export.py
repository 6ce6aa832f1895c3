"""``prunekit export``: a model, pruned or not, in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from prunekit import load, read_plan
from prunekit.plugin import ArgumentError, CheckpointError, Registry, nearest
from prunekit_plugins.checkpoints.destination import check_folder, check_format
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_writable, read_inputs
from prunekit_plugins.cli.models import Subject, build, fill
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.export import Comparison, Exported, export_folder, export_onnx, export_program
from prunekit_plugins.export.folder import TARGETS, Check

FORMATS = {"onnx": export_onnx, "torch-export": export_program}
"""Formats for any model."""
FOLDER = "hf:"


def export(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="File (or, for hf and mlx, folder) to write.")],
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
    to: Annotated[
        str,
        typer.Option(
            "--to",
            "--format",
            metavar="FORMAT",
            help="onnx or torch-export; for the folder of a language model gguf, mlx or hf as well.",
        ),
    ] = "onnx",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest relative error, 1e-4 in single precision; of a language model the largest difference of a "
            "log-probability, 1e-3.",
            show_default=False,
        ),
    ] = None,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    as_json: options.Json = False,
) -> None:
    """Write a model in the format of another runtime, and compare there what it computes with the model."""
    specs = read_inputs(inputs or ())
    formats = {*FORMATS, *TARGETS}
    if to not in formats:
        raise ArgumentError("There is no such format.", why=f"got {to!r}", hint=nearest(to, formats))
    if (Path(model) / "config.json").is_file():
        model = f"{FOLDER}{model}"
    source = Path(model.removeprefix(FOLDER)) if model.startswith(FOLDER) else None
    if to not in FORMATS and inputs:
        raise ArgumentError("--input is for onnx and torch-export.", why=f"{to} has free sizes", hint="leave it out")
    if to not in FORMATS and source is None:
        raise ArgumentError(
            "Only folders of models are exported to this format.",
            where=model,
            why=f"{to} takes the tokenizer and the configuration of a model of transformers",
            hint="prunekit export FOLDER",
        )
    if to in FORMATS or not TARGETS[to].is_folder:
        check_format(out, own=to)
        check_writable(out, "--out")
    else:
        check_folder(out)
    output = Output(as_json)
    registry = project_registry(block, config, plugin)
    with output.working(f"building {model}"):
        subject = _built(build(model, specs), weights, plan, registry)
    with output.working(f"exporting {model}"):
        found: Comparison | Exported
        if source is not None and to in TARGETS and not inputs:
            found = export_folder(source, out, to=to, model=subject.model, tolerance=tolerance, registry=registry)
        else:
            found = FORMATS[to](subject.model, subject.inputs, out, tolerance=tolerance)
    output.line(f"{subject}: {sum(p.numel() for p in subject.model.parameters()):,} parameters")
    checked = found.check if isinstance(found, Exported) else found
    output.line(
        str(found) if isinstance(found, Exported) else f"compared with the model: {found}", good=checked is not None
    )
    output.line(f"written: {out} ({found.bytes:,} bytes)", good=True)
    output.result({"model": subject.name, "format": to, "out": str(out), "bytes": found.bytes, **_comparison(checked)})


def _comparison(checked: Check | None) -> dict[str, Any]:
    """What ``--json`` prints of a comparison."""
    if checked is None:
        return {"checked": False}
    found: dict[str, Any] = {"checked": True, "error": checked.error, "tolerance": checked.tolerance}
    if isinstance(checked, Comparison):
        return {**found, "outputs": checked.outputs}
    return {**found, "engine": checked.engine, "prompt": checked.prompt, "steps": checked.steps, "texts": checked.texts}


def _built(subject: Subject, weights: Path | None, plan: Path | None, registry: Registry) -> Subject:
    """Fills and cuts a model as it was typed."""
    if weights is not None and (weights.is_dir() or _is_pruned(weights)):
        if plan is not None:
            raise ArgumentError("Give --plan or the weights of a pruned model, not both.", where=str(weights))
        load(subject.model, weights, registry=registry)
    elif weights is not None:
        fill(subject.model, weights)
    if plan is not None:
        read_plan(plan).apply(subject.model, registry=registry)
    source = str(weights or subject.weights) + (f" cut by {plan}" if plan is not None else "")
    return attrs.evolve(subject, weights=source)


def _is_pruned(weights: Path) -> bool:
    """Whether a file is a checkpoint that prunekit wrote."""
    try:
        read_plan(weights)
    except CheckpointError as error:
        if error.headline == "The file is not a prunekit checkpoint.":
            return False
        raise
    return True

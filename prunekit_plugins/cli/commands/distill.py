"""``prunekit distill``: a pruned checkpoint learns from the model before the cut."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from prunekit import Distillation, Plan, distill as distill_model
from prunekit.plugin import ArgumentError, Batches
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_there, check_writable, read_inputs
from prunekit_plugins.cli.calibrating import Data
from prunekit_plugins.cli.commands.destination import folder_data
from prunekit_plugins.cli.commands.student import Student
from prunekit_plugins.cli.models import Subject, build
from prunekit_plugins.cli.options.flags import words
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.distill.student.pair import doubts_about_pair


def distill(
    student: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT", help="A smaller model that prune --out wrote: file or folder.", show_default=False
        ),
    ],
    teacher: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER",
            help="The model before the cut: torchvision:NAME, timm:NAME, hf:FOLDER, timm:FOLDER or "
            "package.module:factory.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="What to train on: package.module:batches, a .safetensors, .npy or .pt file of inputs, or a .txt for "
            "hf:FOLDER.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Where the trained model goes: a .safetensors file, or a folder.", show_default=False)
    ],
    inputs: options.Inputs = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the teacher (safetensors).", show_default=False)
    ] = None,
    losses: Annotated[
        list[str] | None,
        typer.Option(
            "--loss",
            metavar="NAME=WEIGHT",
            help="logits=1 by default; also hidden, labels. Repeatable.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data that the best state is chosen on.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="What logits are divided by.")] = 2.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.", show_default=False)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data; one without --steps.", show_default=False)
    ] = None,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-4,
    train: Annotated[str, typer.Option(help="What is trained: all, norms or lora.")] = "all",
    precision: Annotated[str | None, typer.Option(help="bf16 for autocast.", show_default=False)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file from which the run goes on.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    batch_size: options.BatchSize = None,
    overwrite: options.Overwrite = False,
    push_to_hub: options.PushToHub = None,
    as_json: options.Json = False,
) -> None:
    """Train a pruned model to put out what the model before the cut does."""
    specs, chosen = read_inputs(inputs or ()), read_losses(losses or ())
    place = Student.of(student, teacher, out, overwrite=overwrite, push_to_hub=push_to_hub)
    given = [Data(text, batch_size if Data(text).file else None) for text in (data, held_out) if text is not None]
    for part in given:
        part.check(teacher)
    check_there(weights)
    if checkpoint is not None:
        check_writable(checkpoint, "--checkpoint")
    output = Output(as_json)
    with output.working(f"building {teacher}"):
        subject = build(teacher, specs, weights)
        small = place.model(lambda: build(teacher, specs).model)
    plan, batches = place.plan(), [part.batches(subject) for part in given]
    _check_teacher(output, subject, small, plan)
    with output.tracked("distilling") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the teacher is not the model")  # said above
        result = distill_model(
            small, subject.model, batches[0], plan=plan, weights=chosen, temperature=temperature, steps=steps,
            epochs=epochs, lr=lr, train=train, precision=precision, held_out=_second(batches), checkpoint=checkpoint,
            seed=seed, progress=progress,
        )  # fmt: skip
    with output.working(f"writing {out}"):
        folder = place.save(small, plan, subject.inputs, result, overwrite=overwrite)
    output.table(Table(f"{student} beside {subject}", ("loss", ">first step", ">last step"), _rows(result)))
    for line in str(result).splitlines():
        if line.startswith(("stopped", "note")):
            output.line(words(line))
    for line in [] if folder is None else str(folder).splitlines():
        output.line(line)
    output.line(f"written to {out}, after {result.best_step} of {result.steps} steps")
    told = {"student": student, "teacher": teacher, "out": str(out), **_data(result), **folder_data(folder)}
    output.result(told)


def _check_teacher(output: Output, teacher: Subject, student: nn.Module, plan: Plan) -> None:
    """Warns of a teacher that isn't the model before the cut.

    Raises:
        ArgumentError: It can't be meant: its weights are random, or it has fewer parameters than the student.
    """
    if teacher.random:
        raise ArgumentError(
            "The teacher has random weights.",
            where=teacher.name,
            why="they teach nothing",
            hint="--weights FILE reads those of the model before the cut; hf:FOLDER and timm:FOLDER come with theirs",
        )
    own, others = (sum(tensor.numel() for tensor in model.parameters()) for model in (student, teacher.model))
    if own > others:
        raise ArgumentError(
            "The student has more parameters than the teacher.",
            why=f"{own:,} and {others:,}",
            hint="prunekit distill STUDENT TEACHER: the smaller model first, and then the one before the cut",
        )
    for doubt in doubts_about_pair(student, teacher.model, plan):
        output.warning(doubt)
    if type(student) is not type(teacher.model):
        kinds = [type(model).__name__ for model in (student, teacher.model)]
        output.warning(f"the student is a {kinds[0]} and the teacher a {kinds[1]}: is it the model before the cut?")


def read_losses(texts: Sequence[str]) -> dict[str, float] | None:
    """Reads ``--loss`` arguments: ``hidden=0.5``; None where there are none.

    Raises:
        ArgumentError: One isn't of that form.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            raise ArgumentError(
                "A --loss must be a name, an equals sign and a number.",
                why=f"got {text!r}",
                hint="for example --loss logits=1 --loss hidden=0.5",
            ) from None
    return found or None


def _second(batches: Sequence[Batches]) -> Batches | None:
    return batches[1] if len(batches) > 1 else None


def _rows(result: Distillation) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (name, f"{values[0]:.4g}", f"{values[-1]:.4g}") for name, values in result.losses.items() if values
    ]
    if result.held_out:
        best = min(loss for _, loss in result.held_out)
        rows.append(("held out, and the best", f"{result.held_out[0][1]:.4g}", f"{best:.4g}"))
    return rows


def _data(result: Distillation) -> Mapping[str, Any]:
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "losses": {name: list(values) for name, values in result.losses.items()},
        "held_out": [list(pair) for pair in result.held_out],
        "stopped": result.stopped,
        "notes": list(result.notes),
    }

"""``prunekit shrink``: a recipe in, and a folder with the smaller model, every step and a protocol out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from prunekit import shrink as shrink_model
from prunekit.plugin import Batches, Config
from prunekit_plugins.checkpoints.destination import check_name_of_folder
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_writable, read_inputs
from prunekit_plugins.cli.calibrating import Data
from prunekit_plugins.cli.models import build
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.cli.recipe import KEYS, Key, Recipe, read_keys, recipe_of
from prunekit_plugins.cli.repeating import registry_of_recipe
from prunekit_plugins.shrink import Shrinking, Step

FURTHER: dict[str, Key] = {
    "train": KEYS["calibration"],
    "held_out": KEYS["calibration"],
    "steps": KEYS["batches"],
    "schedule": ("the name of a schedule", KEYS["model"][1]),
    "distill": ("a table of arguments of distill", KEYS["settings"][1]),
}
"""Keys of a recipe for shrinking besides those of one for pruning."""


@attrs.frozen
class ShrinkRecipe:
    """What a call of ``prunekit shrink`` depends on.

    Attributes:
        cut: The model, the calibration data and the settings of the cuts, the target among them.
        settings: These settings as a configuration.
        train: The training data, as ``--calibration`` takes them.
        held_out: Data that states are chosen on; empty for those for calibration.
        steps: Number of cuts; None for the usual one.
        schedule: Name of the schedule.
        distill: Arguments of `distill`.
    """

    cut: Recipe
    settings: Config
    train: str
    held_out: str
    steps: int | None
    schedule: str
    distill: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> ShrinkRecipe:
        """Reads and checks a recipe.

        Raises:
            ArgumentError: There is no such file, it is no TOML, or holds a key that doesn't exist or is wrong.
        """
        data = read_keys(path, KEYS | FURTHER, ("format", "model", "calibration", "train", "settings"))
        return cls(
            recipe_of(data),
            Config.of(data["settings"], path),
            data["train"],
            data.get("held_out", ""),
            data.get("steps"),
            data.get("schedule", "exponential"),
            data.get("distill", {}),
        )

    def data(self) -> dict[str, Data]:
        """Returns where the data come from, by the argument of `shrink`; what can't be looked for is told."""
        found = {"calibration": Data(self.cut.checked_calibration(), self.cut.batch_size, self.cut.batches)}
        for name, text in (("train", self.train), ("held_out", self.held_out)):
            if text:
                found[name] = Data(text)
                found[name] = Data(text, self.cut.batch_size if found[name].file else None)
        for part in found.values():
            part.check(self.cut.model)
        return found


def shrink(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="What is cut, to what, and how it is trained (TOML).")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the steps and the protocol go; RECIPE without .toml by default.", show_default=False),
    ] = None,
    block: options.Block = None,
    plugin: options.Plugins = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load the code that the settings in the recipe name.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Cut a model to a target in steps and train it after each, as a recipe says."""
    known = ShrinkRecipe.read(recipe)
    registry = registry_of_recipe(recipe, known.settings, block, plugin, trusted=allow_code)
    place = folder or recipe.with_suffix("")
    check_name_of_folder(place)
    check_writable(place, "--folder", folder=True)
    specs, given, weights = read_inputs(known.cut.input), known.data(), known.cut.checked_weights()
    output = Output(as_json)
    with output.working(f"building {known.cut.model}"):
        subject = build(known.cut.model, specs, weights, known.cut.seed)
    settings = registry.options()
    batches: dict[str, Batches] = {name: data.batches(subject) for name, data in given.items()}
    with output.tracked("shrinking") as progress:
        result = shrink_model(
            subject.model, subject.inputs, target=settings.pop("target", {}), steps=known.steps,
            schedule=known.schedule, prune={name: v for name, v in settings.items() if name != "registry"},
            distill=known.distill, folder=place, seed=known.cut.seed, progress=progress, registry=registry, **batches,
        )  # fmt: skip
    last = place / f"step-{len(result.history)}.safetensors"
    output.table(_table(result, str(subject)))
    for line in str(result).splitlines():
        if line.startswith(("stopped", "note")):
            output.line(line)
    for change in known.cut.changes():
        output.line(f"note: the recipe was written with {change}")
    output.line(f"written to {last}, with all steps in {place}", good=True)
    output.result({"model": subject.name, "out": str(last), "folder": str(place), **_data(result)})


def _table(result: Shrinking, title: str) -> Table:
    names = list(result.history[0].cut.target)
    heads = ("step", *(f">{name}" for name in names), ">left", ">loss", ">after cut", ">trained")
    dense = result.history[0].cut.costs[names[0]][0]
    rows = [_row(step, names, dense) for step in result.history]
    return Table(title, heads, rows)


def _row(step: Step, names: list[str], dense: float) -> tuple[str, ...]:
    costs = [step.cut.costs[name][1] for name in names]
    losses = (step.loss_before, step.loss_cut, step.loss_after)
    numbers = ["" if loss is None else f"{loss:.4g}" for loss in losses]
    return (str(step.number), *(f"{cost:,.0f}" for cost in costs), f"{costs[0] / dense:.1%}", *numbers)


def _data(result: Shrinking) -> dict[str, Any]:
    return {
        "steps": [
            {
                "step": step.number,
                "target": dict(step.cut.target),
                "costs": {name: {"before": a, "after": b} for name, (a, b) in step.cut.costs.items()},
                "loss": {"before": step.loss_before, "after_cut": step.loss_cut, "trained": step.loss_after},
                "stopped": "" if step.training is None else step.training.stopped,
            }
            for step in result.history
        ],
        "stopped": result.stopped,
        "notes": list(result.notes),
    }

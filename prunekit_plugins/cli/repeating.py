"""Where a call of ``prunekit prune`` starts from, a recipe or what was typed, and the recipe that repeats it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from prunekit.plugin import ArgumentError, Config, Registry
from prunekit_plugins.cli.calibrating import Data
from prunekit_plugins.cli.models import SEED, Subject
from prunekit_plugins.cli.output import Output
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.cli.recipe import Recipe, current_versions, digest, read_recipe, settings_of, write_recipe


def start(
    context: typer.Context,
    model: str | None,
    path: Path | None,
    block: Sequence[str] | None,
    config: Path | None,
    plugins: Sequence[str] | None,
    *,
    trusted: bool,
) -> tuple[Recipe, Registry]:
    """Reads the recipe, if there is one, and makes the registry with its settings or with those of the project.

    Args:
        context: That of the command.
        model: The model that was typed.
        path: The recipe.
        block, config, plugins: See `project_registry`.
        trusted: Whether code that the settings in the recipe name may be loaded.

    Returns:
        The recipe, with the model that was typed in its place if one was, and the registry.

    Raises:
        ArgumentError: The recipe can't be read, names code and isn't trusted, or a configuration file was given beside
            it.
        typer.BadParameter: There is no model.
    """
    if path is None:
        if model is None:
            raise typer.BadParameter("name a model, or give --recipe FILE", ctx=context, param_hint="MODEL")
        return Recipe(model, (), {}, seed=SEED), project_registry(block, config, plugins)
    if config is not None:
        raise ArgumentError("Give --recipe or --config, not both.", hint="a recipe holds all settings")
    recipe, settings = read_recipe(path)
    if model is not None and model != recipe.model:  # the inputs and weights were another model's
        recipe = Recipe(model, (), recipe.settings, seed=recipe.seed, versions=recipe.versions)
    return recipe, registry_of_recipe(path, settings, block, plugins, trusted=trusted)


def registry_of_recipe(
    path: Path, settings: Config, block: Sequence[str] | None, plugins: Sequence[str] | None, *, trusted: bool
) -> Registry:
    """Makes the registry with the settings of a recipe.

    Args:
        path: The recipe.
        settings: Its settings.
        block, plugins: See `project_registry`.
        trusted: Whether code that the settings name may be loaded.

    Raises:
        ArgumentError: They name code, and that isn't trusted.
    """
    if settings.code() and not trusted:
        raise ArgumentError(
            "The recipe names code.",
            where=str(path),
            why=", ".join(settings.code()),
            hint="read that code; then repeat the call with --allow-code, which lets it be loaded",
        )
    return Registry(block=block or (), config=settings, plugins=plugins or ())


def finish(
    output: Output,
    known: Recipe,
    subject: Subject,
    settings: Mapping[str, Any],
    path: Path | None,
    weights: Path | None,
    data: Data | None,
    distributions: Iterable[str],
) -> None:
    """Tells where versions differ from the recipe's, and writes the recipe of this call where one is wanted.

    Args:
        output: Where lines go.
        known: The recipe that the call started from.
        subject: What was pruned.
        settings: What it was pruned with.
        path: Where the new recipe goes; None for nowhere.
        weights: The file with the weights; None for random ones.
        data: The calibration data; None for none.
        distributions: Names of the distributions whose plugins brought what decided.
    """
    for change in known.changes():
        output.line(f"note: the recipe was written with {change}")
    if path is None:
        return
    recipe = Recipe(
        subject.name,
        tuple(map(str, subject.specs)),
        settings_of(settings["registry"], settings, "magnitude" if data is None else "calibrated", path.parent),
        "" if weights is None else str(weights),
        "" if weights is None else digest(weights),
        **({} if data is None else _calibration(data)),
        seed=known.seed,
        versions=current_versions(distributions),
    )
    write_recipe(path, recipe)
    output.line(f"recipe: {path}", good=True)


def _calibration(data: Data) -> dict[str, Any]:
    return {
        "calibration": data.text,
        "calibration_sha256": "" if data.file is None else digest(data.file),
        "batch_size": data.batch_size,
        "batches": data.limit,
    }

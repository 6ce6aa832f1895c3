"""Pipelines of diffusers: a folder for each component, and an index that names their classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from prunekit.plugin import ArgumentError, CheckpointError
from prunekit_plugins.folders.companions import CARD, OLD_CARD
from prunekit_plugins.folders.library import configuration_in
from prunekit_plugins.integrations.huggingface import CONFIG

INDEX = "model_index.json"
DENOISERS = ("unet", "transformer", "prior")
"""Names of the component that takes the noise away, which most of the time goes into."""

SIDE = 8
"""Height and width of latents to try."""


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline."""
    return (folder / INDEX).is_file()


def component_in(folder: Path, name: str | None) -> str | None:
    """Returns the component of a folder that is meant.

    Args:
        folder: A folder, of a pipeline or not.
        name: What was asked for; None for the denoiser.

    Returns:
        The name of the component's folder; None for a folder that is no pipeline.

    Raises:
        ArgumentError: There is no such component, or none was named and there is no denoiser, or more than one.
        CheckpointError: The index can't be read.
    """
    if not is_pipeline(folder):
        if name is not None:
            raise ArgumentError(
                "The folder holds no pipeline.",
                where=str(folder),
                why=f"a component {name!r} was named, and there is no {INDEX}",
            )
        return None
    known = _components(folder)
    if name is not None and name not in known:
        raise ArgumentError("The pipeline has no such component.", where=str(folder), why=_listed(name, known))
    found = [name] if name is not None else [one for one in DENOISERS if one in known]
    if len(found) != 1:
        why = f"it has {', '.join(known) or 'none that is a model'}"
        hint = "name one: component=..."
        raise ArgumentError("The component that is meant isn't clear.", where=str(folder), why=why, hint=hint)
    return found[0]


def _listed(name: str, known: list[str]) -> str:
    return f"got {name!r}; it has {', '.join(known) or 'none that is a model'}"


def _components(folder: Path) -> list[str]:
    """Lists the components that are models."""
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError("The configuration can't be read.", where=str(folder / INDEX), why=str(error)) from error
    return [name for name in index if (folder / name / CONFIG).is_file()]


def check_latents(model: Any, folder: Path) -> None:
    """Makes sure that an autoencoder of a pipeline still has the latents that the other components work on.

    Args:
        model: The pruned component.
        folder: The folder of the unpruned one.

    Raises:
        ArgumentError: It has fewer.
    """
    latents = configuration_in(folder).get("latent_channels")
    if latents is None:
        return
    narrow = torch.zeros((1, latents, SIDE, SIDE), dtype=model.dtype, device="cpu")
    try:
        with torch.no_grad():
            model.decode(narrow)
    except RuntimeError as error:
        raise ArgumentError(
            "The pruned component has other latents than the rest of the pipeline.",
            where=str(folder),
            why=f"it doesn't decode {latents} of them",
            hint="keep them: ignored_layers=[...] with the layers that put them out",
        ) from error


def copy_others(source: Path, target: Path, component: str) -> tuple[str, ...]:
    """Copies a pipeline but for one component, weights included.

    Args:
        source: The folder of the pipeline.
        target: A folder that is there.
        component: The one that is left out.

    Returns:
        The names of what was copied.
    """
    copied = []
    for place in sorted(source.iterdir()):
        if place.name.startswith(".") or place.name in (component, CARD, OLD_CARD):
            continue
        if place.is_dir():
            shutil.copytree(place, target / place.name, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(place, target / place.name)
        copied.append(place.name)
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, target / OLD_CARD)
    return tuple(copied)


def size_of_others(source: Path, component: str) -> int:
    """Returns how many bytes `copy_others` copies."""
    files = (file for file in source.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if file.relative_to(source).parts[0] != component)

"""A model from a folder: by the stock class, or by the plan in it where no configuration says all sizes."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from prunekit.plugin import CheckpointError, Registry
from prunekit_plugins.folders.known import library_at
from prunekit_plugins.folders.pipeline import component_in
from prunekit_plugins.folders.stock import WEIGHTS, holds_plan, holds_weights
from prunekit_plugins.integrations.huggingface import CONFIG


def load_folder(
    folder: str | os.PathLike[str], *, component: str | None = None, registry: Registry | None = None
) -> nn.Module:
    """Opens a folder of a model, pruned or not; nothing is downloaded, no code in it is run.

    It is a folder of transformers, of timm, or of diffusers: a model of it, or a whole pipeline, of which one component
    is opened. The class is the one that the configuration names, out of the library itself. A folder whose weights hold
    a plan is opened with it, any other one by the stock class.

    Args:
        folder: With a ``config.json`` and weights, in one file or in shards.
        component: Of a pipeline, the component; None for the one that takes the noise away.
        registry: Where replacements are found; None for the default registry.

    Returns:
        The model, in eval mode, on the CPU, with the dtypes of the weights.

    Raises:
        CheckpointError: There is no such folder, or no such model in it, or the weights are for another one.
        ArgumentError: The library isn't installed, or the pipeline has no such component.
    """
    place = Path(folder)
    place /= component_in(place, component) or ""
    if not (place / CONFIG).is_file():
        raise CheckpointError("The folder holds no configuration.", where=str(place / CONFIG))
    if not holds_weights(place):
        raise CheckpointError("The folder holds no weights.", where=str(place), why=f"none of {', '.join(WEIGHTS)}")
    library = library_at(place)
    return library.load_planned(place, registry) if holds_plan(place) else library.load(place)

"""A model from a folder: by the stock class, or by the plan in it where no configuration says all sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.plugin import CheckpointError, Registry
from prunekit_plugins.checkpoints.shards import Weights
from prunekit_plugins.integrations.huggingface import CONFIG, library, load_pretrained

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Files in which transformers finds weights."""


def load_folder(folder: str | os.PathLike[str], *, registry: Registry | None = None) -> nn.Module:
    """Opens a folder of a model of transformers, pruned or not; nothing is downloaded, no code in it is run.

    The class is the one that the configuration names, out of transformers itself. A folder whose weights hold a plan is
    opened with it, any other one by ``from_pretrained``.

    Args:
        folder: With a ``config.json`` and weights, in one file or in shards.
        registry: Where replacements are found; None for the default registry.

    Returns:
        The model, in eval mode, on the CPU, with the dtypes of the weights.

    Raises:
        CheckpointError: There is no such folder, or no such model in it, or the weights are for another one.
        ArgumentError: transformers isn't installed.
    """
    place = Path(folder)
    if not (place / CONFIG).is_file():
        raise CheckpointError("The folder holds no configuration.", where=str(place / CONFIG))
    if not holds_weights(place):
        raise CheckpointError("The folder holds no weights.", where=str(place), why=f"none of {', '.join(WEIGHTS)}")
    return load_pretrained(place, registry=registry) if holds_plan(place) else load_stock(place)


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds weights that transformers reads."""
    return any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def holds_plan(folder: Path) -> bool:
    """Whether the weights in a folder hold the plan that leads to their shapes."""
    try:
        return Weights(folder).ours
    except CheckpointError:  # no safetensors: whoever reads the weights says what is wrong with them
        return False


def load_stock(folder: Path) -> nn.Module:
    """Opens a folder with the class that its configuration names; no weight is left to chance.

    Raises:
        CheckpointError: It can't be read, its code would have to be run, or weights are missing or of other shapes.
    """
    transformers = library()
    local = {"local_files_only": True, "trust_remote_code": False}  # False, not the default: that asks on the terminal
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **local)
        architecture = class_of(transformers, config)
        model, found = architecture.from_pretrained(str(folder), dtype="auto", output_loading_info=True, **local)
    except Exception as error:  # it raises errors of several libraries
        why = " ".join(str(error).split())[:300]
        raise CheckpointError("The model can't be read.", where=str(folder), why=why) from error
    wrong = [f"{key} is missing" for key in sorted(found["missing_keys"])]
    wrong += [f"{key[0]} has another shape" for key in sorted(found["mismatched_keys"])]
    if wrong:  # transformers would go on with random values
        raise CheckpointError(
            "The weights are for another model.",
            where=str(folder),
            why="; ".join(wrong[:3]) + ("; ..." if wrong[3:] else ""),
            hint="a folder that save_pretrained of the whole model wrote; prunekit.load opens what prune --out wrote",
        )
    opened: nn.Module = model.eval()
    return opened


def class_of(transformers: Any, config: Any) -> Any:
    """Returns the class that a configuration names, or else transformers' usual one for it."""
    found = getattr(transformers, next(iter(config.architectures or ()), "AutoModel"), None)
    named = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if named else transformers.AutoModel

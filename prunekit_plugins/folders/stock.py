"""What is read of a folder of transformers: weights, a plan in them, and the model by its stock class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.plugin import CheckpointError
from prunekit_plugins.checkpoints.shards import Weights
from prunekit_plugins.integrations.huggingface import library

WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
    "diffusion_pytorch_model*.bin",
)
"""Files in which a library finds weights."""


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds weights that a library reads."""
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
    check_whole(folder, sorted(found["missing_keys"]), sorted(key[0] for key in found["mismatched_keys"]))
    opened: nn.Module = model.eval()
    return opened


def class_of(transformers: Any, config: Any) -> Any:
    """Returns the class that a configuration names, or else transformers' usual one for it."""
    found = getattr(transformers, next(iter(config.architectures or ()), "AutoModel"), None)
    named = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if named else transformers.AutoModel


def check_whole(folder: Path, missing: Sequence[str], mismatched: Sequence[str]) -> None:
    """Raises an error where weights were missing or of other shapes, and a library would go on with random values.

    Raises:
        CheckpointError: There are such.
    """
    wrong = [*(f"{name} is missing" for name in missing), *(f"{name} has another shape" for name in mismatched)]
    if wrong:
        raise CheckpointError(
            "The weights are for another model.",
            where=str(folder),
            why="; ".join(wrong[:3]) + ("; ..." if wrong[3:] else ""),
            hint="a folder that save_pretrained of the whole model wrote; prunekit.load opens what prune --out wrote",
        )

"""What a folder holds beside weights and configuration: tokenizer, templates, processors."""

from __future__ import annotations

import shutil
from pathlib import Path

from prunekit_plugins.checkpoints.checkpoint import PLAN, PROTOCOL

CARD = "README.md"
OLD_CARD = "README_before_pruning.md"
OWN = (CARD, OLD_CARD, PLAN, PROTOCOL, "config.json", "generation_config.json")
"""Files that are written, not copied."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.index.json", "*.onnx")
"""Files with weights, which would be those from before."""


def copy_companions(source: Path, target: Path) -> tuple[str, ...]:
    """Copies what isn't weights or written anew: tokenizer, chat template, processor, folders of further parts.

    Args:
        source: The folder of the unpruned model.
        target: A folder in which the model was written.

    Returns:
        The names of what was copied.
    """
    copied = []
    for place in sorted(source.iterdir()):
        if place.name.startswith(".") or place.name in OWN or _is_weights(place):
            continue
        if place.is_dir():
            shutil.copytree(place, target / place.name, ignore=shutil.ignore_patterns(*WEIGHT_FILES, ".*"))
            if not any(file.is_file() for file in (target / place.name).rglob("*")):
                shutil.rmtree(target / place.name)  # it held weights alone
                continue
        else:
            shutil.copyfile(place, target / place.name)
        copied.append(place.name)
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, target / OLD_CARD)
    return tuple(copied)


def _is_weights(place: Path) -> bool:
    return place.is_file() and any(place.match(pattern) for pattern in WEIGHT_FILES)

"""What a folder holds beside weights and configuration: tokenizer, templates, processors; and the card of a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunekit.plugin import Protocol

CARD = "README.md"
OLD_CARD = "README_before_pruning.md"
PLAN = "prunekit_plan.json"
PROTOCOL = "prunekit_protocol.json"
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


def card(
    name: str, opened: str, sizes: Mapping[str, tuple[int | None, int]], notes: Sequence[str], protocol: Protocol | None
) -> str:
    """Words what was done to a model, in Markdown.

    Args:
        name: Class of the model.
        opened: The line of Python that opens the folder.
        sizes: Field of the configuration to its value before and after.
        notes: What no configuration can say; empty for a folder that the stock class loads.
        protocol: How the model came about.
    """
    lines = [f"# {name}, pruned", "", "Made smaller with prunekit: whole units were removed, nothing was trained."]
    lines += ["", "```python", *_imports(opened), "", f"model = {opened}", "```", ""]
    if notes:
        lines += ["The stock class can't build this model, because no configuration can say its sizes:", ""]
        lines += [*(f"- {note}" for note in notes), ""]
    if protocol is not None:
        lines += ["| cost | before | after | left |", "|---|---|---|---|"]
        lines += [
            f"| {cost} | {before:,.0f} | {protocol.pruned[cost]:,.0f} | {protocol.pruned[cost] / before:.1%} |"
            for cost, before in protocol.dense.items()
            if before and cost in protocol.pruned
        ]
        lines += [""]
    if sizes:
        lines += ["| configuration | before | after |", "|---|---|---|"]
        lines += [f"| {field} | {'open' if old is None else old} | {new} |" for field, (old, new) in sizes.items()]
        lines += [""]
    lines += [
        f"What went is in `{PLAN}`. Quality was not measured here: evaluate the model, and train it.",
        "",
    ]
    return "\n".join(lines)


def _imports(opened: str) -> list[str]:
    head = opened.split("(")[0].split(".")[0]
    return ["import prunekit"] if head == "prunekit" else [f"from transformers import {head}"]

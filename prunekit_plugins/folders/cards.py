"""The card of a pruned model: what was done, what was measured, and what is lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from prunekit import Distillation
from prunekit.plugin import Protocol
from prunekit_plugins.folders.library import Opening
from prunekit_plugins.integrations.configuration import ConfigUpdate

KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets", "base_model")
"""Metadata of a card that are those of the pruned model, too; what was measured isn't."""
MADE_BY = ("target", "ratio", "importance", "structures", "branch_ratio", "serve")
"""Arguments of `prune` that a reader of a card wants to know."""


@attrs.frozen
class Provenance:
    """What is known about how a model came about.

    Attributes:
        name: Class of the model.
        plan: The file with the plan, in the folder.
        protocol: How it was pruned; None where that isn't known.
        distillation: How it was trained after the cut; None where it wasn't.
        measured: Quality before and after, by name.
        library: What opens it, as the hub calls it.
        old: The card of the unpruned model; empty where there is none.
    """

    name: str
    plan: str
    protocol: Protocol | None
    distillation: Distillation | None
    measured: Mapping[str, tuple[float, float]]
    library: str
    old: str


def card(made: Provenance, opening: Opening, update: ConfigUpdate) -> str:
    """Words what was done to a model, in Markdown.

    Args:
        made: How it came about.
        opening: How the folder is opened.
        update: What the configuration says, and what it can't; the latter is empty where the stock class loads it.
    """
    lines = [*_metadata(made), f"# {made.name}, pruned", "", _done(made), ""]
    lines += ["```python", *opening.imports, "", f"model = {opening.call}", "```", ""]
    if update.notes:
        lines += ["The stock class can't build this model, because no configuration can say its sizes:", ""]
        lines += [*(f"- {note}" for note in update.notes), ""]
    lines += [*_arguments(made.protocol), *_costs(made.protocol), *_training(made.distillation)]
    if update.changed:
        lines += ["| configuration | before | after |", "|---|---|---|"]
        lines += [
            f"| {field} | {'open' if old is None else old} | {new} |" for field, (old, new) in update.changed.items()
        ]
        lines += [""]
    return "\n".join([*lines, *_quality(made.measured), f"What went is in `{made.plan}`.", ""])


def _metadata(made: Provenance) -> list[str]:
    """What the hub reads of a card: of the old one what holds for the pruned model, too."""
    block = made.old.split("---\n")[1] if made.old.startswith("---\n") and made.old.count("---\n") > 1 else ""
    kept, keep = [], False
    for line in block.splitlines():
        if line[:1] not in (" ", "-", "#", ""):
            keep = line.split(":")[0] in KEPT
        if keep:
            kept.append(line)
    return ["---", f"library_name: {made.library}", "tags:", "- prunekit", *kept, "---", ""]


def _done(made: Provenance) -> str:
    parts = ["Made smaller with prunekit: whole units were removed", *_calibrated(made.protocol)]
    parts.append(_trained(made.distillation))
    return f"{', '.join(parts[:-1])}, and {parts[-1]}." if len(parts) > 2 else f"{parts[0]}; {parts[-1]}."


def _calibrated(protocol: Protocol | None) -> Iterator[str]:
    """Says how many examples a model was calibrated with, and which of its weights were fitted to them."""
    if protocol is None or protocol.calibration is None:
        return
    examples, fitted = protocol.calibration.get("examples"), protocol.calibration.get("fitted") or {}
    yield "calibration data were read" if examples is None else f"calibrated with {_many(examples, 'example')}"
    if fitted:
        yield f"weights were fitted ({', '.join(f'`{name}`: {what}' for name, what in fitted.items())})"
    else:
        yield "no weights were fitted"


def _trained(distillation: Distillation | None) -> str:
    """Says how long the model was trained, and which of its states was kept."""
    if distillation is None or not distillation.steps:
        return "nothing was trained"
    done = f"{_many(distillation.steps, 'step')} towards the outputs of the unpruned model"
    if not distillation.best_step:
        return f"nothing of a training was kept: {done} made it no better on held-out data"
    if distillation.best_step == distillation.steps:
        return f"the rest was trained for {done}"
    return f"the rest was trained for {done}, of which those up to step {distillation.best_step} were kept"


def _many(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def _arguments(protocol: Protocol | None) -> Iterator[str]:
    given: Mapping[str, Any] = {} if protocol is None else protocol.arguments
    said = [(name, given[name]) for name in MADE_BY if given.get(name) is not None]
    if said:
        yield "Called with " + ", ".join(f"`{name}={value!r}`" for name, value in said) + "."
        yield ""


def _costs(protocol: Protocol | None) -> Iterator[str]:
    if protocol is None:
        return
    yield from ("| cost | before | after | left |", "|---|---|---|---|")
    for cost, before in protocol.dense.items():
        if before and cost in protocol.pruned:
            after = protocol.pruned[cost]
            yield f"| {cost} | {before:,.0f} | {after:,.0f} | {after / before:.1%} |"
    yield ""


def _training(distillation: Distillation | None) -> Iterator[str]:
    if distillation is None:
        return
    losses = {name: (values[0], values[-1]) for name, values in distillation.losses.items() if values}
    if distillation.held_out:
        held_out = [loss for _, loss in distillation.held_out]
        losses["on held-out data: before training, and as kept"] = (held_out[0], min(held_out))
    yield from ("| loss against the unpruned model | first step | last step |", "|---|---|---|")
    yield from (f"| {name} | {first:.4g} | {last:.4g} |" for name, (first, last) in losses.items())
    yield ""


def _quality(measured: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    if not measured:
        yield "Quality was not measured here, so that what is lost isn't known: evaluate the model, and train it."
        yield ""
        return
    yield from ("| measured | before | after | change |", "|---|---|---|---|")
    for name, (before, after) in measured.items():
        change = f"{after / before - 1:+.1%}" if before and math.isfinite(after / before) else ""
        yield f"| {name} | {before:.4g} | {after:.4g} | {change} |"
    yield ""

"""What shrinking did: its steps, as data, and the model at their end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core.groups.report import Report
from prunekit_core.plans.plan import Plan
from prunekit_plugins.checkpoints import Protocol


@attrs.frozen(eq=False)
class Cut:
    """The first half of a step: what was removed.

    Attributes:
        plan: What went, from the model before the step.
        target: What the model could cost after it, by name.
        costs: Cost to (before the step, after it).
        report: What was pruned, left on purpose, not understood, untouched.
        protocol: How the cut came about.
    """

    plan: Plan
    target: Mapping[str, float]
    costs: Mapping[str, tuple[float, float]]
    report: Report
    protocol: Protocol

    def to_plain(self) -> dict[str, Any]:
        """Returns the cut as plain data."""
        return {
            "plan": self.plan.to_json(),
            "target": dict(self.target),
            "costs": {name: list(pair) for name, pair in self.costs.items()},
            "report": attrs.asdict(self.report),
            "protocol": self.protocol.to_json(),
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Cut:
        """Reads what `to_plain` returned."""
        report = {name: _as_before(value) for name, value in data["report"].items()}
        return cls(
            Plan.from_json(data["plan"]),
            data["target"],
            {name: (before, after) for name, (before, after) in data["costs"].items()},
            Report(**report),
            Protocol.from_json(data["protocol"]),
        )


def _as_before(value: Any) -> Any:
    """Makes the tuples of a report out of the lists that JSON made of them."""
    if isinstance(value, list):
        return tuple(map(_as_before, value))
    return {key: _as_before(item) for key, item in value.items()} if isinstance(value, dict) else value


@attrs.frozen(eq=False)
class Training:
    """The second half of a step: how the model was trained.

    Attributes:
        steps: Optimizer steps that were made.
        best_step: After how many of them the model was as it was kept.
        losses: Name of each loss to its values, step by step, without its weight.
        held_out: Steps and the weighted loss on the held-out batches after so many.
        stopped: Why it ended early; empty if it didn't.
        diverged: Whether a loss or a gradient wasn't finite.
        notes: What should be known besides.
    """

    steps: int
    best_step: int
    losses: Mapping[str, tuple[float, ...]]
    held_out: tuple[tuple[int, float], ...]
    stopped: str = ""
    diverged: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Training:
        """Reads what `attrs.asdict` made of a training, through JSON."""
        return cls(**{name: _as_before(value) for name, value in data.items()})


@attrs.frozen(eq=False)
class Step:
    """A cut, and the training after it.

    Attributes:
        number: Of the step, counted from 1.
        cut: What was removed.
        training: How the model was trained; None while that isn't done.
        loss_before: The weighted loss on the held-out batches before the cut.
    """

    number: int
    cut: Cut
    training: Training | None
    loss_before: float

    @property
    def loss_cut(self) -> float | None:
        """The loss after the cut, before the training."""
        return None if self.training is None else self.training.held_out[0][1]

    @property
    def loss_after(self) -> float | None:
        """The loss after the training, of the state that was kept."""
        return None if self.training is None else min(loss for _, loss in self.training.held_out)

    def to_plain(self) -> dict[str, Any]:
        """Returns the step as plain data."""
        return {
            "number": self.number,
            "loss_before": self.loss_before,
            "loss_cut": self.loss_cut,
            "loss_after": self.loss_after,
            "cut": self.cut.to_plain(),
            "training": None if self.training is None else attrs.asdict(self.training),
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Step:
        """Reads what `to_plain` returned."""
        training = None if data["training"] is None else Training.from_plain(data["training"])
        return cls(data["number"], Cut.from_plain(data["cut"]), training, data["loss_before"])


@attrs.frozen(eq=False)
class Shrinking:
    """What `shrink` did.

    Attributes:
        model: The smaller model, a new one.
        plan: What went in all steps, from the model that was given.
        report: That of the last cut.
        history: The steps.
        folder: Where they are stored; None for nowhere.
        stopped: Why it ended before the target; empty if it didn't.
        notes: What should be known besides.
    """

    model: nn.Module = attrs.field(repr=False)
    plan: Plan
    report: Report
    history: tuple[Step, ...]
    folder: str | os.PathLike[str] | None = None
    stopped: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = list(self.history[0].cut.target)
        lines = [
            " ".join(["step", *(f"{name:>14}" for name in names), "   left", "     loss", "   after cut", " trained"])
        ]
        for step in self.history:
            lines.append(_line(step, self.history[0], names))
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _line(step: Step, first: Step, names: list[str]) -> str:
    costs = [step.cut.costs[name][1] for name in names]
    left = costs[0] / first.cut.costs[names[0]][0]
    losses = [f"{loss:.4g}" for loss in (step.loss_before, step.loss_cut, step.loss_after) if loss is not None]
    cells = [f"{step.number:>4}", *(f"{cost:>14,.0f}" for cost in costs), f"{left:>7.1%}"]
    return " ".join([*cells, *(f"{loss:>9}" for loss in losses)])

"""What a distillation did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
from torch import nn


@attrs.frozen(eq=False)
class Distillation:
    """What `distill` did.

    Attributes:
        model: The student, with the best state on the held-out batches, or the last one without such batches.
        steps: Optimizer steps that were made.
        losses: Name of each loss to its values, step by step, without its weight.
        held_out: Steps and the weighted loss on the held-out batches after so many; at step 0 that of the student as it
            came. Empty without held-out batches.
        best_step: After how many steps the student was as it is now.
        stopped: Why the run ended before its last step; empty if it didn't.
        diverged: Whether that was a loss or a gradient that wasn't finite.
        notes: What should be known besides.
    """

    model: nn.Module = attrs.field(repr=False)
    steps: int
    losses: Mapping[str, tuple[float, ...]]
    held_out: tuple[tuple[int, float], ...]
    best_step: int
    stopped: str = ""
    diverged: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.steps} steps"]
        for name, values in self.losses.items():
            if values:
                first, last = ends(values)
                lines.append(f"  {name}: {first:.4g} -> {last:.4g}{' (it rose)' * (last > first)}")
        if self.held_out:
            best = min(loss for _, loss in self.held_out)
            lines.append(f"  held out: {self.held_out[0][1]:.4g} -> {best:.4g}, after {self.best_step} steps")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of the first tenth of some values, and that of the last one."""
    tenth = math.ceil(len(values) / 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def doubts(
    losses: Mapping[str, Sequence[float]], weights: Mapping[str, float], best_step: int, *, held_out: bool
) -> Iterator[str]:
    """Says that a run did the student no good.

    Args:
        losses: Name of each loss to its values, step by step.
        weights: What each is multiplied by.
        best_step: After how many steps the student is as it is left; 0 where it is left as it came.
        held_out: Whether held-out data told the best step: they say whether it got better, not the batches trained on.
    """
    totals = [
        sum(weights[name] * value for name, value in zip(losses, step, strict=True))
        for step in zip(*losses.values(), strict=True)
    ]
    if totals and not best_step:
        yield f"the held-out loss was never lower than before: the student is as it came; {_LOWER}"
    elif not held_out and len(totals) > 1 and (pair := ends(totals))[1] > pair[0]:
        yield f"the loss rose, from {pair[0]:.4g} to {pair[1]:.4g}: {_LOWER}, and held_out=batches keeps the best state"


_LOWER = "a lower learning rate (lr=) or more data may help"

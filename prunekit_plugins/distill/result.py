"""What a distillation did."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
                tenth = math.ceil(len(values) / 10)
                first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
                lines.append(f"  {name}: {first:.4g} -> {last:.4g}")
        if self.held_out:
            best = min(loss for _, loss in self.held_out)
            lines.append(f"  held out: {self.held_out[0][1]:.4g} -> {best:.4g}, after {self.best_step} steps")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

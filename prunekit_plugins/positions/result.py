"""What came of fewer positions."""

from __future__ import annotations

import attrs
from torch import nn

from prunekit_core.plans.plan import Plan


@attrs.frozen(eq=False)
class PositionsResult:
    """How a model came to have fewer positions.

    Attributes:
        model: The pruned model (the one that was passed in).
        plan: The decision, as data.
        length: How many positions it has now.
        size: How many it had.
        tables: Parameters with a row for each position.
        notes: What else is to be known.
    """

    model: nn.Module = attrs.field(repr=False)
    plan: Plan = attrs.field(repr=False)
    length: int
    size: int
    tables: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        preview = self.plan.preview()
        share = preview.params_after / preview.params_before
        lines = [f"positions  {self.size:>14,} -> {self.length:>14,}  ({self.length / self.size:.1%} kept)"]
        sizes = f"{preview.params_before:>14,} -> {preview.params_after:>14,}"
        lines.append(f"params     {sizes}  ({share:.1%} kept)")
        lines.append(f"rows looked up: {', '.join(self.tables)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

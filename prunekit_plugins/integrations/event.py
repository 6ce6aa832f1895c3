"""What one cut in the middle of a training took away."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from prunekit.plugin import Plan


@attrs.frozen
class PruningEvent:
    """One cut in the middle of a training.

    Attributes:
        after: The training step (or epoch) after which it was made.
        step: Which step of the pruner it was, from 1.
        steps: How many there will be.
        groups: Group that lost units to (units before this cut, units after it).
        costs: Cost model to (before this cut, after it); ``"params"`` always, ``"macs"`` and others where registered.
        branches: Branches that went with this cut.
    """

    after: int
    step: int
    steps: int
    groups: Mapping[str, tuple[int, int]]
    costs: Mapping[str, tuple[float, float]]
    branches: tuple[str, ...] = ()

    @classmethod
    def of(cls, after: int, step: int, steps: int, before: Plan, now: Plan) -> PruningEvent:
        """Compares two plans that lead from the model at its construction to its states before and after the cut."""
        earlier, later = before.kept, now.preview()
        groups = {
            name: (len(earlier[name]) if name in earlier else size, left)
            for name, (size, left) in later.groups.items()
            if left < (len(earlier[name]) if name in earlier else size)
        }
        known = {"params": (float(later.params_before), float(later.params_after)), **later.costs}
        old = None if before.empty else before.preview()
        past = {name: whole for name, (whole, _) in known.items()}
        if old is not None:
            past.update({"params": float(old.params_after), **{name: left for name, (_, left) in old.costs.items()}})
        gone = tuple(name for name in now.absent if name not in before.absent)
        return cls(after, step, steps, groups, {name: (past[name], left) for name, (_, left) in known.items()}, gone)

    def metrics(self) -> dict[str, float]:
        """Returns numbers for a logger: the pruning step, and every cost after the cut."""
        return {
            "prunekit/step": float(self.step),
            **{f"prunekit/{name}": left for name, (_, left) in self.costs.items()},
        }

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {before:,.0f} -> {left:,.0f}" for name, (before, left) in self.costs.items())
        what = f"{len(self.groups)} groups" + (f", {len(self.branches)} branches" if self.branches else "")
        return f"pruned after {self.after} (step {self.step} of {self.steps}): {what}, {costs}"

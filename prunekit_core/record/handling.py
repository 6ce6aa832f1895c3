"""How the recorder handles an operation: noted, decomposed, or passed on."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from prunekit_core.program.calls import writes
from prunekit_core.program.rules import RuleTable
from prunekit_core.record.fakes import ShapeHandling
from prunekit_core.torch_private.operators import decomposes


@attrs.frozen(eq=False)
class Handling:
    """How an operation is handled.

    Attributes:
        passed_on: Whether it is run without being reported.
        decomposes: Whether it is run as the operations that it is made of, where it is made of some.
        draws: Whether it may draw random numbers.
        writes: Whether it writes into an argument.
        shape: How its result is computed on fake tensors.
    """

    passed_on: bool
    decomposes: bool
    draws: bool
    writes: bool
    shape: ShapeHandling

    @classmethod
    def of(cls, op: Any, rules: RuleTable) -> Handling:
        """Finds how a ``torch._ops.OpOverload`` is handled."""
        passed_on = op.namespace in ("prim", "profiler") or op is torch.ops.aten.detach.default
        apart = not passed_on and not rules.has(op) and decomposes(op)
        draws = torch.Tag.nondeterministic_seeded in op.tags
        return cls(passed_on, apart, draws, writes(op), ShapeHandling.of(op, rules))

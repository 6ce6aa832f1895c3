"""ShortGPT (Men et al., "Layers in Large Language Models are More Redundant Than You Expect", 2024).

Whole layers go whose block influence is lowest: ``BI = 1 - E[cos(x_in, x_out)]`` over tokens.
"""

from __future__ import annotations

from typing import Any

from .budget import Budget, layers_to_go
from .decoder import drop_layers
from .evidence import Evidence


def prune(model: Any, evidence: Evidence, budget: Budget) -> None:
    """Cuts a copy of the model that the evidence is of."""
    influence = 1 - evidence.influence.closeness
    order = influence.argsort(stable=True).tolist()
    drop_layers(model, order[: layers_to_go(evidence.sizes, budget)])

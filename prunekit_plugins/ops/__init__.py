"""Op rules for the operations of PyTorch, one file per family."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import Rule, hookimpl
from prunekit_plugins.ops import (
    attention,
    convolutions,
    derivatives,
    factories,
    indexing,
    joins,
    losses,
    matrices,
    norms,
    orders,
    pointwise,
    positions,
    products,
    quantization,
    reductions,
    scatters,
    solves,
    sparse,
    spatial,
    views,
    vision,
)

FAMILIES = (
    attention,
    convolutions,
    derivatives,
    factories,
    indexing,
    joins,
    losses,
    matrices,
    norms,
    orders,
    pointwise,
    positions,
    products,
    quantization,
    reductions,
    scatters,
    solves,
    sparse,
    spatial,
    views,
    vision,
)


@hookimpl
def prunekit_op_rules() -> Mapping[str | torch.Tag, Rule]:
    """All built-in op rules."""
    return {key: rule for family in FAMILIES for key, rule in family.RULES.items()}

"""Names of operations in the tables of rules."""

from __future__ import annotations

import torch

from prunekit.plugin import Rule


def aten(names: str, rule: Rule) -> dict[str | torch.Tag, Rule]:
    """Gives one rule to several operations of ``aten``, whose names are separated by spaces."""
    return {f"aten::{name}": rule for name in names.split()}

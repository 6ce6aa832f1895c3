"""The schedule of iterative pruning."""

from __future__ import annotations

import prunekit as pk


def linear_scheduler(pruning_ratio: float, steps: int) -> list[float]:
    """Returns cumulative ratios in equal steps: ``[i / steps * pruning_ratio for i in 0..steps]``."""
    return pk.linear_scheduler(pruning_ratio, steps)

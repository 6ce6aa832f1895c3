"""Compensators: repairing a pruned model on calibration data, before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit_core import hookimpl
from prunekit_plugins.compensation.batchnorm import BatchNormStatistics
from prunekit_plugins.compensation.least_squares import LeastSquares
from prunekit_plugins.compensation.means import ConstantUnits, MeanBias

__all__ = ["BatchNormStatistics", "ConstantUnits", "LeastSquares", "MeanBias"]


@hookimpl
def prunekit_compensators() -> Mapping[str, Callable[..., Any]]:
    """All built-in compensators."""
    return {
        "batchnorm": BatchNormStatistics,
        "bias": MeanBias,
        "constant_units": ConstantUnits,
        "least_squares": LeastSquares,
    }

"""Compensators: repairing a pruned model on calibration data, before any training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import Registry, hookimpl
from prunekit_plugins.compensation.batchnorm import BatchNormStatistics
from prunekit_plugins.compensation.layer_fit import LayerFit
from prunekit_plugins.compensation.least_squares import LeastSquares
from prunekit_plugins.compensation.means import ConstantUnits, MeanBias
from prunekit_plugins.compensation.merge_experts import MergeExperts
from prunekit_plugins.compensation.repair import LayerRepair, Repair
from prunekit_plugins.compensation.run import Compensation, compensate

__all__ = [
    "BatchNormStatistics",
    "Compensation",
    "ConstantUnits",
    "LayerFit",
    "LayerRepair",
    "LeastSquares",
    "MeanBias",
    "MergeExperts",
    "Repair",
    "compensate",
]


@hookimpl
def prunekit_compensators() -> Mapping[str, Callable[..., Any]]:
    """All built-in compensators."""
    return {
        "batchnorm": BatchNormStatistics,
        "bias": MeanBias,
        "constant_units": ConstantUnits,
        "least_squares": LeastSquares,
        "merge_experts": MergeExperts,
    }


@hookimpl
def prunekit_checks() -> Mapping[tuple[str, Any], Callable[..., None]]:
    """Experts are merged in a network that has some."""

    def check(registry: Registry) -> None:
        net, batch = importlib.import_module("prunekit_plugins.testing.network").mixture_net()
        importlib.import_module("prunekit.testing").check_compensator(
            MergeExperts, model=net, example=batch, registry=registry
        )

    return {("prunekit_compensators", "merge_experts"): check}

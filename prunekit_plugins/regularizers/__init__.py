"""Regularizers for sparse training: what is added to the gradients so that weak units fade before they are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.regularizers.bn_scale import BNScaleRegularizer
from prunekit_plugins.regularizers.group_lasso import GroupLassoRegularizer
from prunekit_plugins.regularizers.group_norm import GroupNormRegularizer
from prunekit_plugins.regularizers.growing import GrowingRegularizer
from prunekit_plugins.regularizers.members import GroupMembers

__all__ = [
    "BNScaleRegularizer",
    "GroupLassoRegularizer",
    "GroupMembers",
    "GroupNormRegularizer",
    "GrowingRegularizer",
]


@hookimpl
def prunekit_regularizers() -> Mapping[str, Callable[..., Any]]:
    """The built-in regularizers; each is made as ``regularizer(groups, **options)``."""
    return {
        "bn_scale": BNScaleRegularizer,
        "group_lasso": GroupLassoRegularizer,
        "group_norm": GroupNormRegularizer,
        "growing": GrowingRegularizer,
    }

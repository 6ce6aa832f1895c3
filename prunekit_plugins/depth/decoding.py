"""Models that decode with a cache: a recording of one call is half of their program."""

from __future__ import annotations

import inspect

from torch import nn

from prunekit_core.errors import UnsupportedModelError

_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params", "past_buckets_states", "mems")
"""Arguments of forwards that take what an earlier call returned."""


def check_decodes_nothing(model: nn.Module) -> None:
    """Raises `UnsupportedModelError` for a model whose forward takes a cache.

    A later call reads the length of the first layer's cache, and layers are numbered in it: a branch that is gone may
    leave the first call right and later ones wrong.
    """
    taken = [name for name in inspect.signature(model.forward).parameters if name in _CACHES]
    if taken:
        raise UnsupportedModelError(
            "Branches of a model that decodes with a cache can't go.",
            where=type(model).__name__,
            why=f"its forward takes {taken[0]}: what later calls do with it wasn't recorded, so that nothing is proven "
            "about them",
            hint="prune its width: ratio=0.3",
        )

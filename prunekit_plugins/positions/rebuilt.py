"""What a model of transformers would be if its class built it from its configuration, as ``from_pretrained`` does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

_RAISED = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, ImportError)
"""What building a model may raise: what came out of it is known by then to run."""


def built_otherwise(model: nn.Module) -> list[str]:
    """Names the tensors of a model that its class would build of another shape from its configuration.

    Args:
        model: The model; one that isn't of transformers, or can't be built, has none.
    """
    kind: Any = type(model)
    config, family = getattr(model, "config", None), getattr(kind, "config_class", None)
    if not isinstance(family, type) or not isinstance(config, family):
        return []
    try:
        with torch.device("meta"):
            fresh = kind(copy.deepcopy(config)).state_dict()
    except _RAISED:
        return []
    return [name for name, tensor in model.state_dict().items() if name in fresh and fresh[name].shape != tensor.shape]

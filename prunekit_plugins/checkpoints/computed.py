"""Buffers that no file holds, of a model on the meta device: its class is asked to compute them once more.

The frequencies of rotary embeddings, masks and position numbers are made by a constructor and never saved. A module
that keeps the configuration that it was made from, as those of transformers do, and whose constructor takes nothing
else, is built from it again, with its parameters on the meta device, and its buffers are taken.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable

import torch
from torch import nn

from prunekit_core.modules.tree import named_tensors


def computed_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Computes the buffers on the meta device that are no part of a checkpoint.

    Args:
        model: The model, before anything was cut from it; it isn't changed.

    Returns:
        Canonical name to values on the CPU, in the dtype of the buffer; those that couldn't be computed are left out.
    """
    persistent = set(model.state_dict(keep_vars=True))
    wanted = {
        name: tensor
        for name, tensor in named_tensors(model).items()
        if tensor.is_meta and name not in persistent and not isinstance(tensor, nn.Parameter)
    }
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        names = [name for name in wanted if name.startswith(prefix) and name not in found]
        twin = _built_again(module) if names else None
        held = {} if twin is None else dict(twin.named_buffers())
        for name in names:
            own = held.get(name.removeprefix(prefix))
            if own is not None and not own.is_meta and own.shape == wanted[name].shape:
                found[name] = own.detach().to(wanted[name].dtype)
    return found


def _built_again(module: nn.Module) -> nn.Module | None:
    """Builds a module from its configuration; None where it has none, or its class takes something else."""
    config = vars(module).get("config")
    empty = _empty_parameters(module.parameters())
    if config is None or empty is None or not _takes_config_alone(type(module)):
        return None
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), empty:
            twin = type(module)(copy.deepcopy(config))
    except Exception:  # whatever the constructor of a foreign class raises: the caller says which values are missing
        return None
    return twin if isinstance(twin, nn.Module) else None


def _takes_config_alone(kind: type[nn.Module]) -> bool:
    """Whether a constructor takes nothing else that could have been given: it isn't known with what it was called.

    Models of transformers may take more, such as whether there is a layer that pools, but no buffer depends on that.
    """
    library = sys.modules.get("transformers")
    if library is not None and issubclass(kind, library.PreTrainedModel):
        return True
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [one.name for one in inspect.signature(kind).parameters.values() if one.kind in named]
    return len([name for name in taken if name != "device"]) == 1


def _empty_parameters(parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[None] | None:
    """Returns what makes constructors put parameters on the meta device; None where there are some and nothing does."""
    if next(iter(parameters), None) is None:
        return contextlib.nullcontext()
    if importlib.util.find_spec("accelerate") is None:
        return None
    made: contextlib.AbstractContextManager[None] = importlib.import_module("accelerate").init_empty_weights(
        include_buffers=False
    )
    return made

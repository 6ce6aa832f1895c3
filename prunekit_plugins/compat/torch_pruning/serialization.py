"""Saving and loading: sizes and tensors as plain data, or whole models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunekit_core import CheckpointError, default_registry
from prunekit_plugins.layers import PrunableMultiheadAttention

FORMAT = 1
DEFAULT_PROTOCOL = torch.serialization.DEFAULT_PROTOCOL

save = torch.save
"""``torch.save``; for a whole model, pickle needs its code when it is loaded. `state_dict` needs no pickle."""
load = torch.load
"""``torch.load``; a whole model needs ``weights_only=False``, which runs code from the file."""

_STAND_INS: Mapping[type[nn.Module], str] = {PrunableMultiheadAttention: "multihead_attention"}


def state_dict(model: nn.Module) -> dict[str, Any]:
    """Collects everything that a fresh, unpruned model needs to become this one.

    Args:
        model: The pruned model.

    Returns:
        Plain data for ``torch.save``, readable with ``weights_only=True``: ``"attributions"`` holds the numbers (and
        tuples of numbers) in the attributes of every module, ``"full_state_dict"`` the parameters and buffers by name,
        ``"replacements"`` which modules prunekit exchanged.
    """
    attributes: dict[str, dict[str, Any]] = {}
    replacements: dict[str, str] = {}
    for path, module in model.named_modules():
        found = {name: _plain(value) for name, value in vars(module).items() if _is_number(name, value)}
        if found:
            attributes[path] = found
        if type(module) in _STAND_INS:
            replacements[path] = _STAND_INS[type(module)]
    tensors = {name: tensor.detach() for name, tensor in _tensors(model).items()}
    return {
        "prunekit": FORMAT,
        "full_state_dict": tensors,
        "attributions": attributes,
        "replacements": replacements,
    }


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Makes a fresh, unpruned model the one that a state was taken from.

    Parameters stay the same objects; only numbers in attributes that exist, with a value of the same type, are set.

    Args:
        model: A model of the same architecture; changed in place.
        state_dict: What `state_dict` returned.

    Returns:
        The model.

    Raises:
        CheckpointError: It is no such state, or of another architecture; the model is untouched.
    """
    if state_dict.get("prunekit") != FORMAT:
        raise CheckpointError(
            "Not a state of this module.",
            why="files that Torch-Pruning wrote hold pickled module internals",
            hint="load the file with Torch-Pruning and save plain tensors, or prune again from the history",
        )
    stand_ins = _stand_ins(model, state_dict["replacements"])
    modules = dict(model.named_modules())
    for path, module in stand_ins.items():
        modules.update({f"{path}.{name}" if name else path: inner for name, inner in module.named_modules()})
    changes: list[tuple[dict[str, Any], str, Any]] = []
    for path, attributes in state_dict["attributions"].items():
        own = modules[path].__dict__ if path in modules else {}
        for name, value in attributes.items():
            if name not in own or not _is_number(name, value) or type(_plain(own[name])) is not type(value):
                raise CheckpointError("The state is of another model.", where=path, why=f"no such attribute: {name}")
            if _plain(own[name]) != value:
                changes.append((own, name, type(own[name])(value)))
    tensors, present = state_dict["full_state_dict"], _tensors(model)
    wrong = sorted(present.keys() ^ tensors.keys())
    wrong += [name for name in present if name in tensors and tensors[name].dim() != present[name].dim()]
    if wrong:
        raise CheckpointError("The state is of another model.", where=wrong[0])
    for path, module in stand_ins.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)
    for target, name, value in changes:
        target[name] = value
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.grad = None
            tensor.data = tensors[name].to(device=tensor.device, dtype=tensor.dtype, copy=True)
    return model


def _stand_ins(model: nn.Module, replacements: Mapping[str, str]) -> dict[str, nn.Module]:
    """Makes the modules that are to be exchanged, around the same parameters."""
    known = {entry.value.name: entry.value for entry in default_registry().entries("prunekit_replacements").values()}
    found = {}
    modules = dict(model.named_modules())
    for path, name in replacements.items():
        replacement, module = known.get(name), modules.get(path)
        if replacement is not None and module is not None and type(module) in _STAND_INS:
            continue
        made = None
        if replacement is not None and module is not None and type(module) is replacement.source:
            made = replacement.convert(module)
        if made is None:
            raise CheckpointError("The state is of another model.", where=path, why=f"no replacement {name!r} fits")
        found[path] = made
    return found


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, shared ones once, buffers that a state dict leaves out as well."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _is_number(name: str, value: object) -> bool:
    if name.startswith("_") or name == "training":
        return False
    if isinstance(value, tuple | list):
        return all(_is_number(name, item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return tuple(_plain(item) for item in value) if isinstance(value, tuple | list) else value

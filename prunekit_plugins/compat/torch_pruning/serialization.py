"""Saving and loading: sizes and tensors as plain data, or whole models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunekit.plugin import CheckpointError, default_registry
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
        Plain data for ``torch.save``, readable with ``weights_only=True``: ``"attributions"`` holds what is plain data
        in the attributes of every module (numbers, texts, flags, None, and lists, tuples and dicts of them),
        ``"full_state_dict"`` the parameters and buffers by name, ``"replacements"`` which modules prunekit exchanged.
    """
    attributes: dict[str, dict[str, Any]] = {}
    replacements: dict[str, str] = {}
    for path, module in model.named_modules():
        found = {name: copy.deepcopy(value) for name, value in vars(module).items() if _is_stored(name, value)}
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

    Parameters stay the same objects. Of attributes that exist, values of the same type are set; plain data that the
    model had under further names are added, where its class has nothing of that name.

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
        owner = modules.get(path)
        for name, value in attributes.items():
            if owner is None or not _is_stored(name, value) or not _takes(owner, name, value):
                raise CheckpointError("The state is of another model.", where=path, why=f"no such attribute: {name}")
            if name not in owner.__dict__ or owner.__dict__[name] != value:
                changes.append((owner.__dict__, name, _as_before(owner.__dict__.get(name), value)))
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


def _is_stored(name: str, value: object) -> bool:
    """Whether an attribute goes into a state: plain data under a public name, the mode apart."""
    return isinstance(name, str) and not name.startswith("_") and name != "training" and _is_plain(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(isinstance(key, str | int) and _is_plain(v) for key, v in value.items())
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(_is_plain, value))
    return value is None or type(value) in (int, float, bool, str)


def _takes(module: nn.Module, name: str, value: object) -> bool:
    """Whether a module can have a value under a name: one of that type stands there, or nothing at all."""
    if name not in module.__dict__:
        return not hasattr(module, name)
    now = module.__dict__[name]
    sequences = isinstance(now, tuple | list) and isinstance(value, tuple | list)
    return now is None or value is None or sequences or type(now) is type(value)


def _as_before(now: Any, value: Any) -> Any:
    """A sequence keeps its type."""
    return type(now)(value) if isinstance(now, tuple | list) and isinstance(value, tuple | list) else value

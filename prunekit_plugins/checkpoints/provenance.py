"""How a pruned model came about, as data: enough to do it again, and to compare two results fairly."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import CheckpointError
from prunekit_core.modules.tree import ModelTree
from prunekit_core.plugins.registry import Registry

FORMAT = 1


@attrs.frozen
class Protocol:
    """How a pruned model came about. Everything in it is plain data, and it can be written as JSON.

    Attributes:
        model: Class of the model.
        source: What the model was built from, such as ``"torchvision:resnet18"``; empty where nobody said.
        versions: Versions of prunekit, torch and Python.
        plugins: Plugins that were loaded, with their versions.
        seed: The seed of PyTorch's default generator.
        arguments: What `prune` was called with. Objects stand as their class and their public attributes, layers as
            their names, tensors as their shape and dtype.
        calibration: Of calibration data: how many ``"examples"`` a pass over them read (None where there was none), and
            what was ``"fitted"`` to them, compensator to layers; None without data.
        dense: Costs of the model before: ``params``, ``macs``, ... under the names of the cost models.
        pruned: The same costs after.
    """

    model: str
    source: str
    versions: Mapping[str, str]
    plugins: Mapping[str, str]
    seed: int
    arguments: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    dense: Mapping[str, float]
    pruned: Mapping[str, float]

    def to_json(self) -> str:
        """Writes the protocol as JSON."""
        return json.dumps({"format": FORMAT, **attrs.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """Reads what `to_json` wrote.

        Raises:
            CheckpointError: The text is no protocol.
        """
        names = {field.name for field in attrs.fields(cls)}
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT or data.keys() != names:
                raise KeyError(f"it must hold {', '.join(sorted(names))}")
            return cls(**data)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError("The protocol can't be read.", why=str(error)) from error


def make_protocol(
    model: nn.Module,
    registry: Registry,
    arguments: Mapping[str, Any],
    costs: Mapping[str, tuple[float, float]],
) -> Protocol:
    """Writes down how a model is pruned here and now.

    Args:
        model: The model; layers among the arguments stand as their names in it.
        registry: Its loaded plugins are listed.
        arguments: What was asked for; those that are None are left out.
        costs: Cost model to (before, after).
    """
    names = ModelTree(model).paths
    return Protocol(
        model=_class_name(type(model)),
        source="",
        versions={
            "prunekit": metadata.version("prunekit"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        plugins={p.name: p.version for p in registry.plugins() if not p.error and not p.blocked},
        seed=torch.initial_seed(),
        arguments={key: describe(value, names) for key, value in arguments.items() if value is not None},
        calibration=None,
        dense={name: before for name, (before, _) in costs.items()},
        pruned={name: after for name, (_, after) in costs.items()},
    )


def describe(value: Any, names: Mapping[int, str]) -> Any:
    """Makes plain data of an argument.

    Args:
        value: Anything.
        names: Dotted names of a model's modules, by identity.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, nn.Module):
        return names.get(id(value), _class_name(type(value)))
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {_key(key, names): describe(item, names) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [describe(item, names) for item in value]
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return _class_name(value)
    public = {name: item for name, item in _attributes(value).items() if not name.startswith("_")}
    plain = {name: item for name, item in public.items() if _is_plain(item)}
    return {"class": _class_name(type(value)), **plain}


def _key(key: Any, names: Mapping[int, str]) -> str:
    if isinstance(key, tuple):
        return ", ".join(_key(item, names) for item in key)
    described = describe(key, names)
    return described if isinstance(described, str) else json.dumps(described)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    return {**{name: getattr(value, name) for name in slots if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _class_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

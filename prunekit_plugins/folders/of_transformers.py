"""Folders of Hugging Face's transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.plugin import Plan, Protocol, Registry
from prunekit_plugins.folders.example_inputs import example_inputs
from prunekit_plugins.folders.library import Library, Opening, Said, configuration_in
from prunekit_plugins.folders.stock import load_stock
from prunekit_plugins.integrations.config_search import sizes_of
from prunekit_plugins.integrations.configuration import ConfigUpdate, update_config
from prunekit_plugins.integrations.huggingface import empty_model, load_pretrained, save_pretrained
from prunekit_plugins.integrations.serving import is_of_transformers


def _lays_out(folder: Path) -> bool:
    return "model_type" in configuration_in(folder)


def _say(model: Any, plan: Plan, inputs: Mapping[str, Any]) -> Said:
    return Said(ConfigUpdate({}, ()) if _is_said(model) else update_config(model, plan, inputs), {})


def _is_said(model: Any) -> bool:
    """Whether the configuration says the sizes already."""
    try:
        built = empty_model(type(model), copy.deepcopy(model.config))
    except Exception:  # whatever a model raises on numbers that contradict each other
        return False
    return sizes_of(built) == sizes_of(model)


def _write(model: Any, folder: Path, fields: Mapping[str, Any], max_shard_size: int | str) -> None:
    model.save_pretrained(str(folder), max_shard_size=max_shard_size)


def _write_planned(
    model: nn.Module,
    folder: Path,
    plan: Plan,
    protocol: Protocol | None,
    max_shard_size: int | str,
    registry: Registry | None,
) -> None:
    save_pretrained(model, folder, plan=plan, protocol=protocol, max_shard_size=max_shard_size, registry=registry)


def _opening(model: nn.Module) -> Opening:
    name = type(model).__name__
    return Opening((f"from transformers import {name}",), f'{name}.from_pretrained("FOLDER")')


TRANSFORMERS = Library(
    "transformers",
    "from_pretrained",
    _lays_out,
    is_of_transformers,
    example_inputs,
    load_stock,
    lambda folder, registry: load_pretrained(folder, registry=registry),
    _say,
    _write,
    _write_planned,
    _opening,
)

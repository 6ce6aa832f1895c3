"""How a library lays models out in folders: what is read, what is written, and what its configurations can say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
from torch import nn

from prunekit import load, save
from prunekit.plugin import CheckpointError, Plan, Protocol, Registry
from prunekit_plugins.integrations.configuration import ConfigUpdate
from prunekit_plugins.integrations.huggingface import CONFIG


class Fields(SimpleNamespace):
    """The fields of a configuration, as attributes."""


@attrs.frozen
class Said:
    """What a configuration says of a pruned model.

    Attributes:
        update: What had to be changed, and what can't be said.
        fields: The fields that a written configuration has to change, with their values; empty where the model holds
            its configuration, and that was changed.
    """

    update: ConfigUpdate
    fields: Mapping[str, Any]


@attrs.frozen
class Opening:
    """Python that opens a folder.

    Attributes:
        imports: Lines that come first.
        call: An expression, with ``FOLDER`` for the folder.
    """

    imports: tuple[str, ...]
    call: str

    def at(self, place: Path | str) -> str:
        """Returns the expression for a folder."""
        return self.call.replace("FOLDER", str(place))


@attrs.frozen
class Library:
    """A library that reads models from folders.

    Attributes:
        name: What it is imported as.
        loader: What opens a folder of it with the stock class.
        lays_out: Whether a folder is one of the library's.
        makes: Whether a model is one of the library's.
        inputs: Makes keyword inputs for a model.
        load: Opens a folder with the stock class; no weight is left to chance.
        load_planned: Opens a folder whose weights hold a plan: (folder, registry).
        say: Finds out what a configuration can say: (pruned model, plan, example inputs).
        write: Writes model and configuration for the stock class: (model, folder, fields, bytes of a file at most).
        write_planned: Writes a model that no configuration describes: weights with a plan in them, and the
            configuration of the unpruned model.
        opening: Says how the stock class opens a folder of a model.
    """

    name: str
    loader: str
    lays_out: Callable[[Path], bool]
    makes: Callable[[nn.Module], bool]
    inputs: Callable[[nn.Module], dict[str, Any]]
    load: Callable[[Path], nn.Module]
    load_planned: Callable[[Path, Registry | None], nn.Module]
    say: Callable[[nn.Module, Plan, Mapping[str, Any]], Said]
    write: Callable[[nn.Module, Path, Mapping[str, Any], int | str], None]
    write_planned: Callable[[nn.Module, Path, Plan, Protocol | None, int | str, Registry | None], None]
    opening: Callable[[nn.Module], Opening]


def planned_writer(
    write_config: Callable[[nn.Module, Path], None],
) -> Callable[[nn.Module, Path, Plan, Protocol | None, int | str, Registry | None], None]:
    """Makes a `Library.write_planned` of what writes the configuration of the unpruned model."""

    def write(
        model: nn.Module,
        folder: Path,
        plan: Plan,
        protocol: Protocol | None,
        max_shard_size: int | str,
        registry: Registry | None,
    ) -> None:
        save(model, folder, plan=plan, protocol=protocol, max_shard_size=max_shard_size)
        write_config(model, folder)

    return write


def planned_reader(empty: Callable[[Path], nn.Module]) -> Callable[[Path, Registry | None], nn.Module]:
    """Makes a `Library.load_planned` of what builds the model of a folder without weights."""

    def read(folder: Path, registry: Registry | None) -> nn.Module:
        return load(empty(folder), folder, registry=registry, assign=True).eval()

    return read


def configuration_in(folder: Path) -> Mapping[str, Any]:
    """Reads the configuration in a folder; empty where there is none.

    Raises:
        CheckpointError: It is no JSON object.
    """
    place = folder / CONFIG
    if not place.is_file():
        return {}
    try:
        found = json.loads(place.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError("The configuration can't be read.", where=str(place), why=str(error)) from error
    if not isinstance(found, dict):
        raise CheckpointError("The configuration can't be read.", where=str(place), why="it is no JSON object")
    return found

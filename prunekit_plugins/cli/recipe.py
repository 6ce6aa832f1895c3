"""Recipes: everything that a call of ``prunekit prune`` depends on, in a TOML file that repeats it bit for bit."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch

from prunekit.plugin import ArgumentError, CheckpointError, Config, Registry, nearest, write_text
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE
from prunekit_plugins.depth import DepthSettings

FORMAT = 1
CODE = {"branch_importance", "expert_importance", "compensation", "allocation"}
"""Settings besides the criterion, the arguments of `prune` among them, in which a name may be one for code."""


@attrs.frozen
class Recipe:
    """What a call of ``prunekit prune`` depends on.

    Attributes:
        model: The MODEL argument.
        input: The inputs, as ``--input`` takes them.
        settings: The settings, as in a configuration file.
        weights: The file with the weights; empty for random ones.
        weights_sha256: SHA-256 of that file.
        seed: Seed of random weights and inputs.
        versions: Versions it was written with: of prunekit, PyTorch, Python, and of the distributions whose plugins
            brought what decided.
        calibration: The calibration data, as ``--calibration`` takes them; empty for none.
        calibration_sha256: SHA-256 of them, where they are a file.
        batch_size: Examples of a batch, where they are a file; None for the usual number.
        batches: Largest number of batches; None for all.
    """

    model: str
    input: tuple[str, ...]
    settings: Mapping[str, Any]
    weights: str = ""
    weights_sha256: str = ""
    seed: int = 0
    versions: Mapping[str, str] = attrs.field(factory=dict)
    calibration: str = ""
    calibration_sha256: str = ""
    batch_size: int | None = None
    batches: int | None = None

    def checked_weights(self) -> Path | None:
        """Returns the file with the weights, or None for random ones.

        Raises:
            CheckpointError: It is not the file that the recipe was written with.
        """
        if not self.weights:
            return None
        if digest(Path(self.weights)) != self.weights_sha256:
            raise CheckpointError(
                "The weights are not those of the recipe.",
                where=self.weights,
                why="their SHA-256 is another one",
                hint="give other weights with --weights, if that is meant",
            )
        return Path(self.weights)

    def checked_calibration(self) -> str:
        """Returns the calibration data, as ``--calibration`` takes them.

        Raises:
            CheckpointError: They are a file, and not the one that the recipe was written with.
        """
        if self.calibration_sha256 and digest(Path(self.calibration)) != self.calibration_sha256:
            raise CheckpointError(
                "The calibration data are not those of the recipe.",
                where=self.calibration,
                why="their SHA-256 is another one",
                hint="give other data with --calibration, if that is meant",
            )
        return self.calibration

    def changes(self) -> list[str]:
        """Lists versions that are others today."""
        now = current_versions(self.versions)
        return [f"{name} {old}, now {now[name]}" for name, old in self.versions.items() if now[name] != old]


def current_versions(distributions: Iterable[str] = ()) -> dict[str, str]:
    """Versions that a result may depend on: those of prunekit, PyTorch and Python, and of further distributions."""
    found = {
        "prunekit": metadata.version("prunekit"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return {**{name: _version(name) for name in distributions if name not in found}, **found}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    if not path.is_file():
        raise CheckpointError(NO_FILE, where=str(path), hint=CHECK_PATH)
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any) -> bool:
    return _is_text(value) and bool(re.fullmatch("[0-9a-f]*", value))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


Key = tuple[str, Callable[[Any], bool]]
KEYS: dict[str, Key] = {
    "format": (f"the number {FORMAT}", lambda value: value == FORMAT and not isinstance(value, bool)),
    "model": ("the name of a model", lambda value: _is_text(value) and bool(value)),
    "input": ('a list of inputs such as "1,3,224,224"', _is_texts),
    "weights": ("the name of a file", _is_text),
    "weights_sha256": ("64 hexadecimal digits", _is_digest),
    "calibration": ("the name of a file, or package.module:name", _is_text),
    "calibration_sha256": ("64 hexadecimal digits", _is_digest),
    "batch_size": ("a positive whole number", _is_count),
    "batches": ("a positive whole number", _is_count),
    "seed": ("a whole number", lambda value: type(value) is int and value >= 0),
    "settings": ("a table of settings", _is_table),
    "versions": ("a table of versions", lambda value: _is_table(value) and all(map(_is_text, value.values()))),
}
"""Every key: what it must be, in words, and whether a value is that."""


def read_recipe(path: Path) -> tuple[Recipe, Config]:
    """Reads and checks a recipe.

    Returns:
        The recipe, and its settings as a configuration.

    Raises:
        ArgumentError: There is no such file, it is no TOML, or holds a key that doesn't exist or is wrong.
    """
    data = read_keys(path, KEYS, ("format", "model", "settings"))
    return recipe_of(data), Config.of(data["settings"], path)


def recipe_of(data: Mapping[str, Any]) -> Recipe:
    """Makes a recipe of the keys of a file; those that it doesn't know are left out."""
    values = {key: value for key, value in data.items() if key in KEYS and key != "format"}
    return Recipe(**{**values, "input": tuple(data.get("input", ()))})


def read_keys(path: Path, keys: Mapping[str, Key], required: Sequence[str]) -> dict[str, Any]:
    """Reads a TOML file and checks its keys.

    Args:
        path: The file.
        keys: Every key that it may hold.
        required: Those that it must hold.

    Raises:
        ArgumentError: There is no such file, it is no TOML, or holds a key that doesn't exist or is wrong.
    """
    where = str(path)
    try:
        data = _parser().loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML's own error is a ValueError
        raise ArgumentError("The recipe can't be read.", where=where, why=str(error)) from error
    for key, value in data.items():
        if key not in keys:
            raise ArgumentError(f"A recipe has no key {key!r}.", where=where, hint=nearest(key, keys))
        words, holds = keys[key]
        if not holds(value):
            raise ArgumentError(f"The key {key!r} of a recipe must be {words}.", where=where, why=f"got {value!r}")
    missing = [key for key in required if key not in data]
    if missing:
        raise ArgumentError("A recipe lacks a key.", where=where, why=", ".join(missing))
    return dict(data)


def _parser() -> Any:
    """The TOML parser: part of Python from 3.11 on, brought along by the extra ``cli`` before."""
    try:
        return importlib.import_module("tomllib")
    except ModuleNotFoundError:
        return importlib.import_module("tomli")


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Writes a recipe; the file appears whole or not at all."""
    lines = ["# repeat it with: prunekit prune --recipe FILE", f"format = {FORMAT}"]
    tables: list[str] = []
    for name, value in attrs.asdict(recipe).items():
        if isinstance(value, dict):
            tables += ["", f"[{name}]", *(f"{_key(key)} = {_value(item)}" for key, item in value.items())]
        elif value not in ("", None):
            lines.append(f"{name} = {_value(value)}")
    write_text(path, "\n".join([*lines, *tables]) + "\n")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def settings_of(registry: Registry, settings: Mapping[str, Any], default: str, folder: Path) -> dict[str, Any]:
    """Writes the arguments of ``prune`` as settings of a configuration file.

    Args:
        folder: The folder of that file, which the paths of code start from.
        registry: The registry that they are meant for, with the project's configuration.
        settings: What its ``options`` returned.
        default: The criterion that was taken where they name none.
    """
    config = registry.config
    found = {key: value for key, value in settings.items() if key not in ("registry", "importance")}
    if not found.keys() & {"ratio", "target", "branch_ratio", "branches"}:
        found["ratio"] = 0.5
    if not only_branches(settings):
        own = {"name": config.importance, **config.importance_arguments}
        found = {"importance": _beside(_written(settings.get("importance", default), own), folder), **found}
    for name in ("branch_importance", "expert_importance"):
        if name in found:
            found[name] = _written(found[name], config.option(name))
    for key in CODE & found.keys():
        found[key] = _beside(found[key], folder)
    host = {
        "block": [plugin.name for plugin in registry.plugins() if plugin.blocked],
        "plugins": _beside(list(registry.uninstalled), folder),
        "plugin": config.tables,
    }
    return {**found, **{name: value for name, value in host.items() if value}}


def only_branches(settings: Mapping[str, Any]) -> bool:
    """Whether ``prune`` takes branches out and no units, so that no criterion ranks these."""
    return DepthSettings.of(settings).requested and not settings.get("ratio")


def _written(criterion: Any, own: Any) -> Any:
    """Returns a criterion as it is written in settings; one that was made of those of the project as it is there."""
    written = criterion if isinstance(criterion, str | Mapping) else own
    return written["name"] if isinstance(written, Mapping) and written.keys() == {"name"} else written


def _beside(value: Any, folder: Path) -> Any:
    """Makes the absolute paths of files with code relative to a folder: in a name, a list of names, or a table."""
    if isinstance(value, Mapping):
        return {**value, "name": _beside(value["name"], folder)}
    if isinstance(value, list | tuple):
        return [_beside(item, folder) for item in value]
    found = re.fullmatch(r"(.+\.py)(:.*)?", value) if isinstance(value, str) else None
    if found is None or not Path(found[1]).is_absolute():
        return value
    return Path(os.path.relpath(found[1], folder.resolve())).as_posix() + (found[2] or "")

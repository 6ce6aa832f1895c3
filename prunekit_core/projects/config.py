"""Settings of a project: ``prunekit.toml``, or the table ``[tool.prunekit]`` of ``pyproject.toml``.

Nothing is read unless somebody asks: the command line looks for a file from the working directory upwards, other
programs name one with ``Registry.from_config``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit_core.arguments import is_count, is_number
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.projects.code_names import anchored, is_code

OWN_FILE = "prunekit.toml"
SHARED_FILE = "pyproject.toml"
SEARCHED = ("uniform", "global")
"""Allocations that no plugin brings: a search for the ratio decides."""


@attrs.frozen
class Config:
    """What a project has set.

    Attributes:
        path: The file it stands in; None when there is none.
        block: Plugins to leave out.
        importance: Name of the criterion; empty when it isn't set.
        importance_arguments: Arguments that the criterion is made with.
        options: Further keyword arguments of ``prune``, under their own names.
        plugins: Modules and files that are plugins of the project.
        tables: The tables of single plugins, by their names.
        stepwise: What `Registry.pruner` and `Registry.regularizer` take besides the options.
    """

    path: Path | None = None
    block: tuple[str, ...] = ()
    importance: str = ""
    importance_arguments: Mapping[str, Any] = attrs.field(factory=dict)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    plugins: tuple[str, ...] = ()
    tables: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    stepwise: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any], path: Path) -> Config:
        """Checks settings that were read elsewhere.

        Args:
            settings: What would stand in a configuration file.
            path: Where it does stand.

        Raises:
            ArgumentError: A setting doesn't exist or has the wrong form.
        """
        return _checked(settings, path)

    @property
    def folder(self) -> Path:
        """The folder of the file, where relative paths start; the working directory where there is no file."""
        return Path.cwd() if self.path is None else self.path.resolve().parent

    def site_of(self, text: str) -> str:
        """Returns the file with the first line that holds a text; words for an argument where none does."""
        lines = [] if self.path is None else self.path.read_text(encoding="utf-8").splitlines()
        number = next((number for number, line in enumerate(lines, 1) if text in line), None)
        return "an argument" if number is None else f"{self.path}:{number}"

    def code(self) -> list[str]:
        """Lists what the settings name that isn't a name of something registered: modules and files with code."""
        named = [self.importance, *(name for key in CODE for name in names_in(self.option(key)))]
        return [*self.plugins, *(name for name in named if is_code(name))]

    def option(self, key: str) -> Any:
        """Returns an option of any kind; None where it isn't set."""
        return self.options.get(key, self.stepwise.get(key))

    @staticmethod
    def among(values: Mapping[str, Any]) -> dict[str, Any]:
        """Picks from some values, such as those of a command's options, those that bear the name of an argument."""
        return {name: value for name, value in values.items() if name in SETTINGS and name not in OF_THE_HOST}

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of ``prune``: those that are given, and the options that they leave as they are set.

        Args:
            given: Arguments that win; None where there is nothing to say. A ratio also wins over a target that is set,
                with its allocation, and the other way round; so do ``round_to`` and ``align``.
        """
        said = {name: value for name, value in given.items() if value is not None}
        lost = {name for names in EXCLUSIVE if said.keys() & names for name in names}
        if "ratio" in said and "target" in self.options:
            lost |= {"allocation", "by"}
        return {**{name: value for name, value in self.options.items() if name not in lost}, **said}


def _is_ratio(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_name_or_list(value: object) -> bool:
    return _is_list_of_names([value] if isinstance(value, str) else value)


def _is_made(value: object) -> bool:
    name = value.get("name") if isinstance(value, Mapping) else value
    return isinstance(name, str) and bool(name)


def names_in(value: Any) -> list[str]:
    """Lists the names in the value of a setting: a name, a list of names, or a table with a name and arguments."""
    if isinstance(value, Mapping):
        return [value["name"]]
    return [value] if isinstance(value, str) else list(value or ())


def _is_table_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and bool(value) and all(map(check, value.values()))


_RATIO = ("a number in [0, 1)", _is_ratio)
_COUNT = ("a positive whole number", is_count)
_WHOLE = ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0)
_SWITCH = ("true or false", lambda value: isinstance(value, bool))
SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "block": ("a list of plugins", _is_list_of_names),
    "plugins": ('a list of modules and files, such as ["tools/pruning.py"]', _is_list_of_names),
    "plugin": ("a table with a table for each plugin", _is_table_of(lambda value: isinstance(value, Mapping))),
    "importance": ('the name of a criterion, or a table such as { name = "magnitude", p = 1 }', _is_made),
    "ratio": _RATIO,
    "target": (
        'a table of cost models and positive numbers, or texts with a unit such as "20ms"',
        _is_table_of(lambda value: isinstance(value, str) or (is_number(value) and value > 0)),
    ),
    "pruning_ratio_dict": ("a table of layers and numbers in [0, 1)", _is_table_of(_is_ratio)),
    "branch_ratio": _RATIO,
    "branches": ("a list of names of branches", _is_list_of_names),
    "branch_importance": (
        'the name of a criterion, or a table such as { name = "output_change", measure = "kl" }',
        _is_made,
    ),
    "by": ('"width", "depth" or "both"', lambda value: value in ("width", "depth", "both")),
    "keep_first": _WHOLE,
    "keep_last": _WHOLE,
    "keep_names": _SWITCH,
    "max_pruning_ratio": ("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1),
    "global_pruning": _SWITCH,
    "isomorphic": _SWITCH,
    "uniform": _SWITCH,
    "allocation": ("the name of an allocator", lambda value: isinstance(value, str)),
    "compensation": ("the name of a compensator or a list of them", _is_name_or_list),
    "reestimate_batchnorm": _SWITCH,
    "stages": _COUNT,
    "round_to": _COUNT,
    "align": ('"auto"', lambda value: value == "auto"),
    "ignored_layers": ("a list of layers", _is_list_of_names),
    "free_outputs": ("a list of names of outputs", _is_list_of_names),
    "serve": ('the name of a serving profile, or a table such as { name = "vllm", tensor_parallel = 2 }', _is_made),
    "workload": (
        "a table of whole numbers such as { batch = 8, length = 512, decode = 128 }",
        _is_table_of(lambda value: type(value) is int and value >= 0),
    ),
    "head_pruning_ratio": _RATIO,
    "expert_pruning_ratio": _RATIO,
    "expert_importance": ('the name of a criterion, or a table such as { name = "reap", relative = false }', _is_made),
    "prune_num_heads": _SWITCH,
    "prune_head_dims": _SWITCH,
    "pruner": ('the name of a pruner, or a table such as { name = "group_norm", reg = 1e-4 }', _is_made),
    "regularizer": ('the name of a regularizer, or a table such as { name = "group_lasso", reg = 1e-4 }', _is_made),
    "iterative_steps": _COUNT,
    "iterative_pruning_ratio_scheduler": ("the name of a schedule", lambda value: isinstance(value, str)),
}
"""Every setting: what it must be, in words, and whether a value is that."""
OF_THE_HOST = ("block", "plugins", "plugin")
"""Settings that say what is loaded; the others are arguments of ``prune``."""
STEPWISE = ("pruner", "regularizer", "iterative_steps", "iterative_pruning_ratio_scheduler")
"""Settings for pruning in steps, which ``prune`` doesn't do."""
CODE = (
    *("branch_importance", "expert_importance", "compensation", "allocation", "pruner", "regularizer"),
    "iterative_pruning_ratio_scheduler",
)
"""Settings, besides the criterion, in which a name may be one for code."""
EXCLUSIVE = (("ratio", "target"), ("round_to", "align"), ("branch_ratio", "branches"))
"""Settings of which one takes the place of the other."""


def read_config(path: Path) -> Config:
    """Reads and checks a configuration file; names of plugins' things are left for the registry to check.

    Args:
        path: A ``pyproject.toml`` with a table ``[tool.prunekit]``, or any other TOML file with the settings at its
            top level.

    Raises:
        ArgumentError: The file isn't there, is no TOML, has no such table, or holds a setting that doesn't exist or
            has the wrong form.
    """
    if not path.is_file():
        raise ArgumentError(f"There is no configuration file {path.name!r}.", where=str(path.parent))
    table = _table(path, _text(path))
    if table is None:
        raise ArgumentError(f"{path.name} has no table [tool.prunekit].", where=str(path))
    return _checked(table, path)


def find_config(folder: Path) -> Config:
    """Reads the nearest configuration file in a folder or one above it; the empty `Config` if there is none.

    In one folder ``prunekit.toml`` comes before ``pyproject.toml``, which only counts with a table ``[tool.prunekit]``.

    Raises:
        ArgumentError: See `read_config`.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        own, shared = place / OWN_FILE, place / SHARED_FILE
        if own.is_file():
            return read_config(own)
        # files that don't name prunekit belong to others, who may be in the middle of writing them
        if shared.is_file() and "prunekit" in (text := _text(shared)):
            table = _table(shared, text)
            if table is not None:
                return _checked(table, shared)
    return Config()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path.name} can't be read.", where=str(path), why=str(error)) from error


def _table(path: Path, text: str) -> Mapping[str, Any] | None:
    """Parses a file; None where it is a ``pyproject.toml`` without our table."""
    parser = _parser(path)
    try:
        data = parser.loads(text)
    except parser.TOMLDecodeError as error:
        raise ArgumentError(f"{path.name} is not valid TOML.", where=str(path), why=str(error)) from error
    if path.name == SHARED_FILE:
        tools = data.get("tool", {})
        data = tools.get("prunekit") if isinstance(tools, Mapping) else None
    if data is not None and not isinstance(data, Mapping):
        raise ArgumentError(f"tool.prunekit in {path.name} must be a table.", where=str(path))
    return data


def _parser(path: Path) -> Any:
    """The TOML parser: part of Python from 3.11 on. It isn't a dependency, because most programs read no file."""
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ArgumentError(
        f"{path.name} can't be read.",
        where=str(path),
        why="this Python has no TOML parser",
        hint='pip install tomli, which "prunekit[cli]" brings along',
    )


def _checked(table: Mapping[str, Any], path: Path) -> Config:
    where = f"{path} [tool.prunekit]" if path.name == SHARED_FILE else str(path)
    for key, value in table.items():
        if key not in SETTINGS:
            raise ArgumentError(f"There is no setting {key!r}.", where=where, hint=nearest(key, SETTINGS))
        words, holds = SETTINGS[key]
        if not holds(value):
            raise ArgumentError(f"The setting {key!r} must be {words}.", where=where, why=f"got {value!r}")
    if "ratio" in table and "target" in table:
        raise ArgumentError("Give a ratio or a target, not both.", where=where)
    named = {key: _anchored(table[key], path.resolve().parent) for key in ("importance", *CODE) if key in table}
    importance = named.pop("importance", "")
    arguments = dict(importance) if isinstance(importance, Mapping) else {"name": importance}
    given = {**table, **named}
    return Config(
        path,
        tuple(table.get("block", ())),
        arguments.pop("name"),
        arguments,
        {key: value for key, value in given.items() if key not in (*OF_THE_HOST, *STEPWISE, "importance")},
        tuple(table.get("plugins", ())),
        table.get("plugin", {}),
        {key: given[key] for key in STEPWISE if key in given},
    )


def _anchored(value: Any, folder: Path) -> Any:
    """Makes paths in names for code absolute, in any value that `names_in` reads."""
    if isinstance(value, Mapping):
        return {**value, "name": anchored(value["name"], folder)}
    return anchored(value, folder) if isinstance(value, str) else [anchored(name, folder) for name in value]

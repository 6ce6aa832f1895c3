"""Finding the sizes that a configuration of transformers must hold so that it builds a model of given shapes.

Nothing is known about single architectures: an edit of the configuration counts when a model built from it without
weights has more of its dims right than before.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import attrs
from torch import nn

Dim = tuple[str, int]
"""A dim of a parameter, by name, or an attribute of a module: its dotted name and -1."""

Build = Callable[[Any], nn.Module]
"""Builds a model without weights from a configuration."""


@attrs.frozen
class Field:
    """A number in a configuration.

    Attributes:
        path: Names of the configurations inside configurations that lead to it.
        name: Its name.
        position: Place in a list of numbers; None for a plain one.
        value: What it is; None where it is open and the model computes a number of its own.
    """

    path: tuple[str, ...]
    name: str
    position: int | None
    value: int | None

    def __str__(self) -> str:
        place = "" if self.position is None else f"[{self.position}]"
        return ".".join((*self.path, self.name)) + place

    def set(self, config: Any, value: int | None) -> None:
        """Changes it in a configuration of the same form."""
        for part in self.path:
            config = getattr(config, part)
        if self.position is None:
            setattr(config, self.name, value)
        else:
            numbers = list(getattr(config, self.name))
            numbers[self.position] = value
            setattr(config, self.name, type(getattr(config, self.name))(numbers))


def configs_in(config: Any, kind: type[Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Lists a configuration and those inside it, a shared one only once, with the names that lead to them.

    Args:
        config: The configuration.
        kind: The class of all configurations.
    """
    found: dict[int, tuple[tuple[str, ...], Any]] = {}

    def walk(inner: Any, path: tuple[str, ...]) -> None:
        if id(inner) not in found:
            found[id(inner)] = (path, inner)
            for name, value in vars(inner).items():
                if isinstance(value, kind):
                    walk(value, (*path, name))

    walk(config, ())
    return list(found.values())


def fields_of(config: Any, kind: type[Any]) -> Iterator[Field]:
    """Yields the numbers of a configuration and of those inside it."""
    for path, inner in configs_in(config, kind):
        for name, value in vars(inner).items():
            if type(value) is int and value > 1:
                yield Field(path, name, None, value)
            elif type(value) in (list, tuple):
                numbers = [(place, item) for place, item in enumerate(value) if type(item) is int and item > 1]
                yield from (Field(path, name, place, item) for place, item in numbers)


def open_fields(config: Any, kind: type[Any], build: Build) -> list[Field]:
    """Lists the fields that a model asks for while it is built, and that are None or not there.

    Args:
        config: The configuration.
        kind: The class of all configurations.
        build: Builds a model.
    """
    read: dict[Field, None] = {}
    watched = copy.deepcopy(config)
    for path, inner in configs_in(watched, kind):
        inner.__class__ = _watching(type(inner), path, read)
    build(watched)
    return list(read)


def _watching(kind: type[Any], path: tuple[str, ...], read: dict[Field, None]) -> type[Any]:
    """Makes a subclass of a class of configurations that notes which fields are read."""

    found: Callable[[Any, str], Any] = vars(object)["__getattribute__"]
    for base in reversed(kind.__mro__):
        found = vars(base).get("__getattribute__", found)

    def look_up(self: Any, name: str) -> Any:
        value = None
        try:
            value = found(self, name)
        finally:
            if value is None and not name.startswith("_"):
                read[Field(path, name, None, None)] = None
        return value

    return type(kind.__name__, (kind,), {"__getattribute__": look_up, "__module__": kind.__module__})


def sizes_of(model: nn.Module) -> dict[Dim, int]:
    """Returns the size of every dim of a model's tensors that are saved."""
    return {(name, dim): size for name, t in model.state_dict().items() for dim, size in enumerate(t.shape)}


def numbers_of(model: nn.Module, kind: type[Any]) -> dict[tuple[str, str], Any]:
    """Returns the attributes of all modules that are of some type: (module path, attribute) to the value."""
    found: dict[tuple[str, str], Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.update({(path, name): value for name, value in vars(module).items() if type(value) is kind})
    return found


def settled_fields(search: ConfigSearch, config: Any, model: nn.Module) -> tuple[dict[Field, int], Any]:
    """Fills in open fields for which a model has computed a number.

    It keeps the number under the same name (``head_dim``), or it is the one size of all dims that follow the field (the
    four times ``n_embd`` that GPT-2 computes where ``n_inner`` is None), which is found by building with another one.

    Args:
        search: Builds models from configurations.
        config: The configuration of the model; it isn't changed.
        model: The unpruned model.

    Returns:
        The fields with these numbers, and a configuration with them that builds the same model.
    """
    config = copy.deepcopy(config)
    computed: dict[str, set[int]] = {}
    for (_, name), value in numbers_of(model, int).items():
        computed.setdefault(name, set()).add(value)
    dense, settled = search.sizes(config, {}), dict[Field, int]()
    for field in open_fields(config, search.kind, search.build):
        values = computed.get(field.name) or search.followers(config, field, dense)
        if len(values) == 1 and search.sizes(config, {field: min(values)}) == dense:
            settled[field] = min(values)
            field.set(config, min(values))
    return settled, config


@attrs.define
class ConfigSearch:
    """Looks for a configuration that builds a model of the shapes of another one.

    Attributes:
        build: Builds a model.
        kind: The class of configurations.
        wanted: The sizes to reach.
        oddities: How many numbers and tables of a model that is built are not those of the other one, where sizes are
            the same: fewer heads and narrower ones have weights of one shape.
        influence: Field to the dims that followed it in a trial.
    """

    build: Build
    kind: type[Any]
    wanted: Mapping[Dim, int]
    oddities: Callable[[nn.Module], int] = lambda model: 0
    influence: dict[Field, frozenset[Dim]] = attrs.field(factory=dict)

    def sizes(self, config: Any, edits: Mapping[Field, int]) -> dict[Dim, int] | None:
        """Returns the sizes that a configuration leads to with some edits; None where it can't be built."""
        changed = copy.deepcopy(config)
        try:
            for field, value in edits.items():
                field.set(changed, value)
            model = self.build(changed)
        except Exception:  # whatever a configuration that doesn't add up raises, it is not the one
            return None
        found = sizes_of(model)
        attributes = {(f"{path}.{name}", -1): value for (path, name), value in numbers_of(model, int).items()}
        return found | {dim: value for dim, value in attributes.items() if dim in self.wanted}

    def followers(self, config: Any, field: Field, dense: Mapping[Dim, int] | None) -> set[int]:
        """Returns the sizes of the dims that follow an open field: all that change with it.

        Args:
            config: A configuration in which it is open.
            field: The field.
            dense: The sizes that this configuration leads to.
        """
        dense = dense or {}
        other = next(size for size in itertools.count(8, 8) if size not in set(dense.values()))
        found = self.sizes(config, {field: other})
        if found is None or found.keys() != dense.keys():
            return set()
        return {size for dim, size in dense.items() if found[dim] != size}

    def wrong(self, sizes: Mapping[Dim, int]) -> set[Dim]:
        """Returns the dims that are not as wanted, those that only one side has included."""
        return {dim for dim in sizes.keys() | self.wanted.keys() if sizes.get(dim) != self.wanted.get(dim)}

    def run(self, config: Any, ratios: Iterable[Fraction]) -> tuple[dict[Field, int], set[Dim]]:
        """Finds edits of a configuration.

        Args:
            config: The configuration of the unpruned model.
            ratios: Ratios by which sizes may have shrunk.

        Returns:
            Field to its new value, and the dims that remain wrong. Every dim that follows an edited field is right.
        """
        shrunk = sorted(set(ratios), reverse=True)
        options = [
            (field, int(field.value * ratio))
            for field in fields_of(config, self.kind)
            for ratio in shrunk
            if field.value is not None and (field.value * ratio).denominator == 1
        ]
        edits, now = self._climb(config, options)
        odd = self._odd(config, edits)
        for field in list(edits) if self.wrong(now) or odd else []:  # fewer heads look like narrower ones at first
            others, found = self._climb(config, [option for option in options if option[0] != field])
            odd_ones = self._odd(config, others)
            if (len(self.wrong(found)), odd_ones) < (len(self.wrong(now)), odd):
                edits, now, odd = others, found, odd_ones
        for field, value in options if odd else []:  # and some sizes don't show in the weights at all
            more = {**edits, field: value}
            if self.sizes(config, more) == now and (odd_ones := self._odd(config, more)) < odd:
                edits, odd = more, odd_ones
        return self._right(config, edits, now)

    def _odd(self, config: Any, edits: Mapping[Field, int]) -> int:
        changed = copy.deepcopy(config)
        for field, value in edits.items():
            field.set(changed, value)
        return self.oddities(self.build(changed))

    def _climb(self, config: Any, options: list[tuple[Field, int]]) -> tuple[dict[Field, int], dict[Dim, int]]:
        """Makes edits as long as one makes more dims right; returns them and the sizes that they lead to."""
        edits: dict[Field, int] = {}
        now = self.sizes(config, {})
        assert now is not None
        improved = True
        while improved and self.wrong(now):
            improved = False
            gains = {option: gain for option in options if (gain := self._gain(config, edits, now, *option)) > 0}
            for field, value in sorted(gains, key=lambda option: -gains[option]):  # what explains most comes first
                found = self.sizes(config, {**edits, field: value})
                if found is not None and len(self.wrong(found)) < len(self.wrong(now)):
                    edits[field], now, improved = value, found, True
            options = [option for option in options if self.influence.get(option[0])]
        return edits, now

    def _gain(self, config: Any, edits: Mapping[Field, int], now: Mapping[Dim, int], field: Field, value: int) -> int:
        """Tries an edit on top of others; returns how many more dims are right."""
        found = self.sizes(config, {**edits, field: value}) if edits.get(field, field.value) != value else None
        if found is None:
            return 0
        moved = frozenset(dim for dim in found.keys() & now.keys() if found[dim] != now[dim])
        self.influence[field] = self.influence.get(field, frozenset()) | moved
        return len(self.wrong(now)) - len(self.wrong(found))

    def _right(self, config: Any, edits: dict[Field, int], now: dict[Dim, int]) -> tuple[dict[Field, int], set[Dim]]:
        """Takes those edits back that make some dim right and another one wrong."""
        for field in list(edits):
            without = {other: value for other, value in edits.items() if other != field}
            before = self.sizes(config, without) if self.wrong(now) else None
            if before is not None and any(before.get(dim) != now.get(dim) for dim in self.wrong(now)):
                edits, now = without, before
        return edits, self.wrong(now)

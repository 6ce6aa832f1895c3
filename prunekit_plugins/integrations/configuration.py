"""Making the configuration of a pruned transformers model say what the model is."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import attrs
import torch
from torch import nn

from prunekit import absorb_constants
from prunekit.plugin import ArgumentError, Graph, Plan, RehearsalError
from prunekit_plugins.integrations.comparison import difference, outputs_of
from prunekit_plugins.integrations.config_depth import Depth, find_depth, gone_modules
from prunekit_plugins.integrations.config_search import (
    Build,
    ConfigSearch,
    Dim,
    Field,
    numbers_of,
    settled_fields,
    sizes_of,
)
from prunekit_plugins.integrations.huggingface import empty_model, library

_TOLERANCE = 1e-5


@attrs.frozen
class ConfigUpdate:
    """What `update_config` did.

    Attributes:
        changed: Field (``"text_config.hidden_size"``) to its value before and after, of a list to how many values it
            has; None where it was open.
        notes: What the configuration can't say, and why. Empty: ``from_pretrained`` builds this model.
    """

    changed: Mapping[str, tuple[int | None, int]]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether a model that is built from the configuration is this one."""
        return not self.notes

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, (old, new) in self.changed.items()]
        if self.notes and not lines:
            lines = ["the configuration is as it was: it can't say what the model is"]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"what to do: {WHAT_TO_DO}"] if self.notes else lines)


WHAT_TO_DO = (
    'prune(..., serve="transformers") takes sizes that a configuration can say; of branches name all of a layer; '
    "prunekit.save_folder stores this model with its plan, and prunekit.load_folder opens it"
)


def update_config(
    model: nn.Module, plan: Plan, example_inputs: Mapping[str, Any], *, strict: bool = True
) -> ConfigUpdate:
    """Makes the configuration of a pruned transformers model tell its sizes, as far as it can.

    Nothing is known about single architectures: a field is changed when a model built from the configuration has more
    of its sizes right, and stays changed only when everything that follows it is right. Numbers that a new model
    computes from sizes (an attention's ``scaling``) are taken over, and the weights make up for them. In the end a
    model is built from the configuration and must give the same outputs.

    Args:
        model: The pruned model, a ``transformers.PreTrainedModel`` whose configuration is that of the unpruned one. Its
            configuration is changed in place, objects that are shared once.
        plan: The plan that led to it.
        example_inputs: Keyword inputs to compare outputs on.
        strict: Whether nothing is changed where the configuration can't say everything. Otherwise it says as much as it
            can, and is that of another model, which ``model.save_pretrained`` doesn't notice.

    Returns:
        What was changed. With ``complete``, ``model.save_pretrained`` and ``from_pretrained`` give back this model;
        otherwise the notes say which sizes differ from layer to layer (see ``serve`` of `prunekit.prune`), and
        `prunekit.save_folder` still stores it.

    Raises:
        ArgumentError: The model is not one of transformers'; nothing was changed.
    """
    transformers = library()
    if not isinstance(model, transformers.PreTrainedModel):
        raise ArgumentError("The model is not one of transformers'.", why=f"got {type(model).__name__}")
    return say_sizes(model, model.config, plan, example_inputs, builder_of(model), strict=strict)


def builder_of(model: nn.Module) -> Builder:
    """Returns how transformers builds models of the class of one."""
    return Builder(library().PretrainedConfig, lambda config: empty_model(type(model), config), refusal)


@attrs.frozen
class Builder:
    """How a library builds models from configurations.

    Attributes:
        kind: The class of configurations, whose attributes are its fields.
        build: Builds a model without weights.
        refusal: Says why the library doesn't take a configuration that a model was built from, if it doesn't.
    """

    kind: type[Any]
    build: Build
    refusal: Callable[[Any], list[str]] = lambda config: []


def say_sizes(
    model: nn.Module,
    config: Any,
    plan: Plan,
    example_inputs: Mapping[str, Any],
    builder: Builder,
    *,
    strict: bool = True,
) -> ConfigUpdate:
    """Does what `update_config` does, for a model and a configuration of any library.

    Args:
        model: The pruned model.
        config: The configuration of the unpruned one, changed in place.
        plan: The plan that led to the model.
        example_inputs: Keyword inputs to compare outputs on.
        builder: How models are built from such configurations.
        strict: Whether nothing is changed where the configuration can't say everything.
    """
    return _Update(model, config, plan, example_inputs, builder).run(strict=strict)


def edits_for(
    model: nn.Module, config: Any, plan: Plan, example_inputs: Mapping[str, Any], builder: Builder
) -> tuple[dict[Field, int], bool]:
    """Looks for the numbers of a configuration that build a model of the sizes of a pruned one.

    Args:
        model: The pruned model, without weights.
        config: The configuration of the unpruned one; it isn't changed.
        plan: The plan that led to the model.
        example_inputs: Its keyword inputs.
        builder: How models are built from such configurations.

    Returns:
        Field to its new value, and whether all sizes are right.
    """
    edits, wrong, _ = _Update(model, config, plan, example_inputs, builder).search()
    return edits, not wrong


class _Update:
    def __init__(self, model: Any, config: Any, plan: Plan, inputs: Mapping[str, Any], builder: Builder) -> None:
        self._model, self._config, self._plan, self._inputs, self._builder = model, config, plan, inputs, builder
        self._build = builder.build
        self._depth = find_depth(config, plan, self._build, builder.kind) if plan.entries else Depth()
        self._undo_depth = self._depth.set(config)
        self._restore = self._undo_depth
        self._before = self._build(config)

    def run(self, *, strict: bool) -> ConfigUpdate:
        """Changes the configuration; see `update_config`."""
        try:
            found = self._changed()
        except BaseException:
            self._restore()
            raise
        if not (strict and found.notes):
            return found
        self._restore()
        return ConfigUpdate({}, found.notes)

    def _changed(self) -> ConfigUpdate:
        gone = gone_modules(self._plan)
        if gone:
            self._undo_depth()
            return ConfigUpdate({}, (*self._depth.notes, *gone))
        edits, wrong, search = self.search()
        expected = outputs_of(self._model, self._inputs)
        notes = [*self._depth.notes, *_not_said(search, wrong)]
        self._restore = self._take_over(edits, notes)
        refused = self._builder.refusal(self._config)
        if refused:
            self._restore()
            return ConfigUpdate({}, (*notes, *refused))
        if not notes:
            fresh = self._build(copy.deepcopy(self._config))
            fresh.load_state_dict(self._model.state_dict(), assign=True)
            other = _other_buffers(fresh, self._model)
            notes.extend(f"{name} isn't saved, and a new model fills it with other values" for name in other)
        if not notes:
            error = difference(expected, outputs_of(fresh, self._inputs))
            if not error <= _TOLERANCE:
                notes.append(f"a model that is built from the configuration gives other outputs (by {error:.1g})")
        error = difference(expected, outputs_of(self._model, self._inputs))
        if not error <= _TOLERANCE:
            self._restore()
            self._depth, edits = Depth(), {}
            notes.append("the model reads its configuration while it runs, and gives other outputs with these sizes")
        changed = {str(field): (field.value, value) for field, value in edits.items()}
        return ConfigUpdate({**self._depth.changed(), **changed}, tuple(notes))

    def search(self) -> tuple[dict[Field, int], set[Dim], ConfigSearch]:
        """Looks for the configuration of the model's sizes, and of those attributes that pruning changed."""
        wanted = sizes_of(self._model)
        dense, now = numbers_of(self._before, int), numbers_of(self._model, int)
        for (path, name), value in now.items():
            if dense.get((path, name), value) != value:
                wanted[f"{path}.{name}", -1] = value
        search = ConfigSearch(self._build, self._builder.kind, wanted, self._oddities)
        ratios = {Fraction(len(cut.kept), cut.size) for cut in self._plan.cuts}
        settled, config = settled_fields(search, self._config, self._before)
        edits, wrong = search.run(config, ratios)
        given = {field: attrs.evolve(field, value=value) for field, value in settled.items()}
        edits = {field: edits.pop(now, settled[field]) for field, now in given.items()} | edits
        for field in settled:  # what the model computes by itself needn't be said
            fewer = {other: value for other, value in edits.items() if other != field}
            if search.sizes(self._config, fewer) == search.sizes(self._config, edits):
                edits = fewer
        return edits, wrong, search

    def _oddities(self, built: nn.Module) -> int:
        """Counts the numbers and the buffers that aren't saved of a new model that are not those of the pruned one."""
        now, new = numbers_of(self._model, float), numbers_of(built, float)
        places = [place for place in now.keys() & new.keys() if now[place] != new[place]]
        return len(places) + len(_other_buffers(built, self._model))

    def _take_over(self, edits: Mapping[Field, int], notes: list[str]) -> Callable[[], None]:
        """Sets the configuration, and the numbers that a new model would compute from it.

        Returns:
            What puts everything back, the number of layers included.
        """
        model, config = self._model, copy.deepcopy(self._config)
        for field, value in edits.items():
            field.set(config, value)
        dense, new = numbers_of(self._before, float), numbers_of(self._build(config), float)
        now = numbers_of(model, float)
        values = {
            place: new[place] for place in now.keys() & new.keys() if now[place] == dense.get(place) != new[place]
        }
        saved: dict[str, torch.Tensor] = {}
        if values:
            try:
                graph = Graph.of(model, dict(self._inputs))
                plan = absorb_constants(graph, values)
            except RehearsalError as error:
                notes.append(f"numbers that a new model computes from its sizes can't be taken over: {error.why}")
                plan, values = Plan(), {}
            saved = {r.parameter: model.get_parameter(r.parameter).detach().clone() for r in plan.rescales}
            plan.apply(model)
        for (path, name), value in values.items():
            setattr(model.get_submodule(path), name, value)
        for field, value in edits.items():
            field.set(self._config, value)

        def restore() -> None:
            for name, tensor in saved.items():
                model.get_parameter(name).data.copy_(tensor)
            for path, name in values:
                setattr(model.get_submodule(path), name, now[path, name])
            for field in edits:
                field.set(self._config, field.value)
            self._undo_depth()

        return restore


def refusal(config: Any) -> list[str]:
    """Says why transformers doesn't take a configuration when it writes and reads it, if it doesn't."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
            type(config).from_pretrained(folder)
        except Exception as error:  # its checks raise errors of several libraries
            return [f"transformers refuses a configuration with these sizes: {' '.join(str(error).split())}"]
    return []


def _other_buffers(fresh: nn.Module, model: nn.Module) -> list[str]:
    """Names the buffers that are not saved and that a new model fills with other values than a pruned one holds."""
    stored, here = fresh.state_dict().keys(), dict(model.named_buffers())
    return [
        name
        for name, buffer in fresh.named_buffers()
        if name not in stored and name in here and not torch.equal(buffer, here[name].to(buffer.device))
    ]


def _not_said(search: ConfigSearch, wrong: Iterable[Dim]) -> list[str]:
    """Says for every field that has to do with sizes that remain wrong which these are."""
    left = set(wrong)
    notes = []
    for field, moved in search.influence.items():
        here = sorted(moved & left)
        if here:
            sizes = sorted({search.wanted[dim] for dim in here if dim in search.wanted})
            places = ", ".join(f"{name}[{dim}]" if dim >= 0 else name for name, dim in here[:3])
            more = f" and {len(here) - 3} more" if len(here) > 3 else ""
            notes.append(f"{field} = {field.value} can't say the sizes {sizes} of {places}{more}")
            left -= moved
    if left:
        name, dim = min(left)
        notes.append(f"no field says the size of {name}[{dim}] and of {len(left) - 1} more")
    return notes

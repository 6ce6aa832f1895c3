"""Which groups of a model a field of its configuration can say the size of, and which sizes it may say."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import Graph, Kind, RecordingError, RehearsalError, Role, Trace, UnitGroup
from prunekit_plugins.integrations.config_search import ConfigSearch, Dim, Field, fields_of, settled_fields
from prunekit_plugins.integrations.configuration import refusal
from prunekit_plugins.integrations.huggingface import empty_model, library

USUAL_MULTIPLE = 8
"""Sizes are multiples of this where they can be: grouped products of matrices ask for it in half precision."""
_ON_REQUEST = (Kind.HEADS, Kind.QUERIES_PER_HEAD, Kind.HEAD_DIM, Kind.EXPERTS, Kind.EXPERT_GROUPS)
"""Groups that lose units on request only, which is not judged here."""


@attrs.frozen
class ConfigLimits:
    """What a configuration can say.

    Attributes:
        fields: Group to the field that says its size and nothing else; all numbers that a model would compute are
            filled in.
        fixed: Layers that carry units of the other groups: these have to keep their sizes.
        multiple: Sizes have to be multiples of this.
    """

    fields: Mapping[str, Field]
    fixed: tuple[str, ...]
    multiple: int

    @property
    def ties(self) -> tuple[frozenset[str], ...]:
        """Groups whose sizes one field says, two and more."""
        alike: dict[Field, list[str]] = {}
        for group, field in self.fields.items():
            alike.setdefault(field, []).append(group)
        return tuple(frozenset(groups) for groups in alike.values() if len(groups) > 1)


def config_limits(graph: Graph, example_inputs: Any, *, multiple: int = USUAL_MULTIPLE) -> ConfigLimits:
    """Finds out, by building models without weights, what the configuration of a model can say.

    Each number in the configuration is changed by itself. It says the size of some groups if the dims of a new model
    that follow are those of these groups, and if that model runs the program of the pruned one: a factor that follows a
    width is another one. Sizes that the library refuses are found by trying as well: a width that isn't a multiple of
    the number of heads, for one.

    Args:
        graph: The graph of an unpruned model of transformers.
        example_inputs: What it was recorded on.
        multiple: What sizes are multiples of where possible.
    """
    model: Any = graph.model
    search = ConfigSearch(lambda config: empty_model(type(model), config), library().PretrainedConfig, {})
    _, config = settled_fields(search, model.config, search.build(model.config))
    trial = _Trial(search, config, _shared_names(model), multiple)
    groups = [group for group in graph.groups() if group.kind not in _ON_REQUEST]
    said: dict[str, Field] = {}
    multiples = []
    for field in fields_of(config, search.kind):
        inside = trial.groups_of(field, groups)
        step = trial.multiple_of(field) if inside else None
        if step is not None and trial.runs_alike(field, inside, step, graph, example_inputs):
            units = trial.units_of(field, inside, step)
            if units is not None:
                said.update((group.name, field) for group in inside)
                multiples.append(units)
    fixed = {_carrier(group, groups) for group in groups if group.name not in said}
    return ConfigLimits(said, tuple(sorted(fixed - {""})), math.lcm(*multiples) if multiples else 1)


@attrs.frozen(eq=False)
class _Trial:
    """Changes single fields of a configuration.

    Attributes:
        search: Builds models.
        config: The configuration, with the numbers that a model would compute filled in.
        names: Name of each tensor to the one that stands for all names of it.
        usual: What sizes are multiples of where possible.
    """

    search: ConfigSearch
    config: Any
    names: Mapping[str, str]
    usual: int

    def groups_of(self, field: Field, groups: Iterable[UnitGroup]) -> list[UnitGroup]:
        """Lists the groups, all of one size, whose dims are those that follow a field; none if others do as well."""
        moved = self._moved(field)
        inside = [group for group in groups if moved and self._dims(group) <= moved]
        covered = {dim for group in inside for dim in self._dims(group)}
        return inside if covered == moved and len({group.size for group in inside}) == 1 else []

    def _moved(self, field: Field) -> set[Dim]:
        """Returns the dims that follow a field; none where tensors come or go with it."""
        assert field.value is not None
        before = self.search.sizes(self.config, {})
        assert before is not None
        for value in dict.fromkeys((field.value // 2, field.value - field.value // 4, field.value - 1)):
            found = self.search.sizes(self.config, {field: value}) if value else None
            if found is not None:
                same = found.keys() == before.keys()
                return {(self.names[n], d) for n, d in found if found[n, d] != before[n, d]} if same else set()
        return set()

    def _dims(self, group: UnitGroup) -> set[Dim]:
        return {(self.names[m.parameter], m.dim) for m in group.members if m.parameter in self.names}

    def multiple_of(self, field: Field) -> int | None:
        """Returns what the values of a field have to be multiples of; None where no smaller one is taken."""
        assert field.value is not None
        size = field.value
        usual = math.gcd(self.usual, size) if size >= 4 * self.usual else 1
        steps = [step for step in range(usual, size // 2 + 1, usual) if size % step == 0]
        return next((step for step in steps if all(self._taken(field, size - k * step) for k in (1, 3))), None)

    def units_of(self, field: Field, inside: Iterable[UnitGroup], step: int) -> int | None:
        """Returns what sizes of groups have to be multiples of, where the field has to be one of a step.

        None where it is a factor of theirs (``mlp_ratio``) that says few sizes only: one that all other sizes of the
        model would have to be multiples of as well.
        """
        assert field.value is not None
        units = Fraction(step * next(iter(inside)).size, field.value).numerator
        return units if units <= max(step, self.usual) else None

    def runs_alike(
        self, field: Field, inside: Iterable[UnitGroup], step: int, graph: Graph, example_inputs: Any
    ) -> bool:
        """Whether a model that is built with another value runs what the pruned model runs."""
        assert field.value is not None
        model: Any = graph.model
        value = max(step, field.value // 2 // step * step)
        units = [(group, Fraction(group.size * value, field.value)) for group in inside]
        if any(count.denominator != 1 for _, count in units):
            return False
        try:
            plan = graph.draft({group.name: tuple(range(int(count))) for group, count in units})
        except RehearsalError:
            return False
        pruned = plan.apply(empty_model(type(model), copy.deepcopy(model.config)))
        config = copy.deepcopy(self.config)
        field.set(config, value)
        return same_program(pruned, self.search.build(config), example_inputs)

    def _taken(self, field: Field, value: int) -> bool:
        if value <= 0:
            return True
        config = copy.deepcopy(self.config)
        field.set(config, value)
        return self.search.sizes(config, {}) is not None and not refusal(config)


def same_program(first: nn.Module, second: nn.Module, example_inputs: Any) -> bool:
    """Whether two models without weights run the same operations, on the same numbers besides their parameters."""
    buffers = [{name: b for name, b in model.named_buffers() if b.device.type != "meta"} for model in (first, second)]
    if buffers[0].keys() != buffers[1].keys() or not all(torch.equal(b, buffers[1][n]) for n, b in buffers[0].items()):
        return False
    try:
        traces = [_trace(model, example_inputs) for model in (first, second)]
    except RecordingError:  # tensors without data may have no kernel (grouped products in float32 before torch 2.15)
        traces = [_trace(_in_memory(model), example_inputs) for model in (first, second)]
    runs = [[(o.name, dict(o.arguments)) for o in trace.operations] for trace in traces]
    return runs[0] == runs[1] and traces[0].shapes == traces[1].shapes and traces[0].constants == traces[1].constants


def _trace(model: nn.Module, example_inputs: Any) -> Trace:
    return Graph.of(model, example_inputs, modes=(False,)).analysis.recordings[0].trace


def _in_memory(model: Any) -> nn.Module:
    """Gives the parameters of a model memory on the CPU; nobody writes to it, so that the system needn't have it."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    made: nn.Module = model.to_empty(device="cpu")
    for name, buffer in made.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()
    return made


def _shared_names(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def _carrier(group: UnitGroup, groups: Iterable[UnitGroup]) -> str:
    """Returns a layer that carries units of a group, of one that carries few others if there is a choice."""
    crowd: dict[str, int] = {}
    for other in groups:
        for module in {member.module for member in other.members if member.role is not Role.IN}:
            crowd[module] = crowd.get(module, 0) + 1
    layers = [member.module for member in group.members if member.role is not Role.IN]
    return min(layers, key=lambda layer: crowd[layer], default="")

"""How many attention heads a configuration can say."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import attrs

from prunekit.plugin import Graph, Kind, RehearsalError, UnitGroup
from prunekit_plugins.integrations.config_limits import ConfigLimits, same_program
from prunekit_plugins.integrations.config_search import Field
from prunekit_plugins.integrations.configuration import Builder, builder_of, edits_for
from prunekit_plugins.integrations.huggingface import empty_model

_TRIALS = 2
"""How many numbers of heads are tried before it counts as known that the configuration can't say any."""


def head_counts(graph: Graph, example_inputs: Any, limits: ConfigLimits) -> dict[str, tuple[int, ...]]:
    """Finds out, by building models without weights, how many heads the configuration of a model can say.

    All attention modules of one class lose the same share of their heads, and a configuration is looked for that builds
    such a model. Other numbers of heads follow from the fields that changed. Not all of them are taken by the library:
    where the width of the layers has to be a multiple of them, they have to divide each width that is possible.

    Args:
        graph: The graph of an unpruned model of transformers.
        example_inputs: What it was recorded on.
        limits: What else the configuration can say, whose sizes may shrink at the same time.

    Returns:
        Group of whole heads to the numbers of units that it may keep, ascending; its own size alone where no smaller
        one can be said.
    """
    trial = _Trial(graph, example_inputs, builder_of(graph.model), _smaller_widths(graph, limits))
    found: dict[str, tuple[int, ...]] = {}
    for family in _families(graph):
        found.update(dict.fromkeys((group.name for group in family), trial.counts(family)))
    return found


def _families(graph: Graph) -> list[list[UnitGroup]]:
    """Lists the groups of whole heads, of one size and in attention modules of one class."""
    groups = graph.groups()
    heads = [group for group in groups if group.kind is Kind.HEADS]
    shared = {member.module for group in heads for member in group.members}
    alone = [group for group in groups if group.kind is Kind.QUERIES_PER_HEAD and group.outer]
    heads += [group for group in alone if shared.isdisjoint(member.module for member in group.members)]
    families: dict[tuple[object, ...], list[UnitGroup]] = {}
    for group in heads:
        around = {type(graph.model.get_submodule(m.module.rpartition(".")[0])) for m in group.producers()}
        families.setdefault((group.kind, group.size, frozenset(around)), []).append(group)
    return list(families.values())


def _smaller_widths(graph: Graph, limits: ConfigLimits) -> list[dict[Field, int]]:
    """Lists edits of a configuration: none, and each of its widths one step smaller."""
    edits: list[dict[Field, int]] = [{}]
    for name, field in limits.fields.items():
        assert field.value is not None
        value = field.value - Fraction(limits.multiple * field.value, graph.analysis.groups[name].size)
        edit = {field: int(value)}
        if value > 0 and edit not in edits:
            edits.append(edit)
    return edits


@attrs.frozen(eq=False)
class _Trial:
    """Tries numbers of heads.

    Attributes:
        graph: The graph of an unpruned model.
        example_inputs: What it was recorded on.
        builder: How models are built.
        widths: Edits of a configuration under which numbers of heads must be taken.
    """

    graph: Graph
    example_inputs: Any
    builder: Builder
    widths: Sequence[Mapping[Field, int]]

    def counts(self, family: Sequence[UnitGroup]) -> tuple[int, ...]:
        """Lists the numbers of heads that groups of one size may keep."""
        size = family[0].size
        likely = sorted(range(1, size), key=lambda count: (size % count != 0, -count))[:_TRIALS]
        for count in likely:
            edits = self._edits(family, count)
            if edits:
                found = {n: _scaled(edits, Fraction(n, count)) for n in range(1, size)}
                taken = [number for number in found if self._taken(found[number])]
                odd = next((number for number in taken if size % number), None)
                if odd is not None and not self._builds(found[odd]):  # then the class itself asks for divisors
                    taken = [number for number in taken if size % number == 0]
                return (*taken, size)
        return (size,)

    def _edits(self, family: Iterable[UnitGroup], count: int) -> dict[Field, int]:
        """Finds the edits that say a number of heads, of a configuration with numbers filled in; none if it can't."""
        model: Any = self.graph.model
        try:
            plan = self.graph.draft({group.name: tuple(range(count)) for group in family})
        except RehearsalError:
            return {}
        pruned = plan.apply(empty_model(type(model), copy.deepcopy(model.config)))
        edits, right = edits_for(pruned, model.config, plan, self.example_inputs, self.builder)
        same = right and same_program(pruned, self.builder.build(self._config(edits)), self.example_inputs)
        return edits if same else {}

    def _config(self, edits: Mapping[Field, int]) -> Any:
        model: Any = self.graph.model
        config = copy.deepcopy(model.config)
        for field, value in edits.items():
            field.set(config, value)
        return config

    def _taken(self, edits: Mapping[Field, int]) -> bool:
        """Whether the library takes a configuration, at all widths that are possible."""
        return bool(edits) and not any(self.builder.refusal(self._config({**width, **edits})) for width in self.widths)

    def _builds(self, edits: Mapping[Field, int]) -> bool:
        try:
            self.builder.build(self._config(edits))
        except Exception:  # classes raise what they like for sizes that don't add up
            return False
        return True


def _scaled(edits: Mapping[Field, int], factor: Fraction) -> dict[Field, int]:
    """Returns edits for another number of heads; none where a field would be no whole number."""
    found = {field: value if field.value is None else value * factor for field, value in edits.items()}
    whole = all(Fraction(value).denominator == 1 for value in found.values())
    return {field: int(value) for field, value in found.items()} if whole else {}

"""A declared vocabulary of a model: its inputs, tables and logits, and the graph in which it may shrink."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
from torch import nn

from prunekit_core.algebra.layout import Layout, Units, groups_of
from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import ArgumentError, NothingToPruneError, nearest
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import Analysis, understood_again
from prunekit_core.groups.recording import Recording
from prunekit_core.program.op_call import Role
from prunekit_core.program.trace import TensorRef, Trace
from prunekit_plugins.vocabulary.axis import Logits, Vocabulary
from prunekit_plugins.vocabulary.flow import READ, Use, leaving, uses_of
from prunekit_plugins.vocabulary.meaning import Meaning

EVERYTHING = ("*",)
"""All outputs, as patterns of their names."""


@attrs.frozen(eq=False)
class Declared:
    """A vocabulary in a model.

    Attributes:
        graph: The model, analysed so that units of the vocabulary may leave.
        layout: How the ids are made of units of its groups.
        tables: Parameters whose rows are looked up by ids.
        inputs: Which of the tensors among the example inputs hold ids, by their places.
        outputs: Names of the outputs that have a value for each id, with their dim along the ids.
        others: Tables with as many rows that other inputs look up: another vocabulary of the same size.
        meaning: What the units are.
    """

    graph: Graph
    layout: Layout
    tables: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: Mapping[str, int]
    others: tuple[str, ...] = ()
    meaning: Meaning = Meaning.IDS


def declare(graph: Graph, table: str | None, outputs: Sequence[str] | None) -> Declared:
    """Declares the rows of a table of embeddings, which ids look up, a vocabulary.

    Args:
        graph: The model, analysed as ever.
        table: The table: name of a parameter, or of the module that holds it; None for the one that the model names
            (``get_input_embeddings``), or else the only one that is looked up by an input.
        outputs: Names of the outputs with a value for each id; None for those that have as many values as there are
            ids, made by layers that nothing else reads.

    Raises:
        ArgumentError: There is no such table or output, or several may be meant.
        NothingToPruneError: The program does something with ids that can't follow.
    """
    name = _table(graph, table)
    size = graph.analysis.parameters[name].shape[0]
    inputs = _inputs_reaching(graph.analysis, name)
    if not inputs:
        raise ArgumentError("No input of the model holds ids of this table.", where=name)
    uses = [uses_of(one.trace, [one.trace.inputs[place] for place in inputs]) for one in graph.analysis.recordings]
    _check_inside(graph.analysis, inputs)
    tables = _tables(graph.analysis, uses)
    found = _logits(graph, size, uses, outputs)
    others = tuple(sorted(_others(graph.analysis, uses, size)))
    return attrs.evolve(_declared(graph, size, uses, found, (tables, inputs)), others=others)


def declare_classes(graph: Graph, outputs: Sequence[str] | None) -> Declared:
    """Declares the values of an output classes.

    Args:
        graph: The model, analysed as ever.
        outputs: Names of the outputs with a value for each class; None for those whose last dim is made by layers that
            nothing else reads, if all have the same number of them.

    Raises:
        ArgumentError: There is no such output, or several may be meant.
        NothingToPruneError: The program does something with them that keeps them apart.
    """
    uses: list[Mapping[int, Use]] = [{} for _ in graph.analysis.recordings]
    found = _logits(graph, None, uses, outputs)
    trace = graph.analysis.recordings[0].trace
    sizes = {trace.shapes[ref.index][found[name]] for ref, name in _results(trace) if name in found}
    if len(sizes) != 1:
        listed = ", ".join(repr(name) for name in found) or "none"
        why = f"found: {listed}" if found else "no output has a dim that only a head makes which nothing else reads"
        raise ArgumentError("Which outputs are meant isn't clear.", why=why, hint="name them: outputs=")
    return _declared(graph, sizes.pop(), uses, found, ((), ()))


def _declared(
    graph: Graph,
    size: int,
    uses: Sequence[Mapping[int, Use]],
    outputs: Mapping[str, int],
    rest: tuple[tuple[str, ...], tuple[int, ...]],
) -> Declared:
    tables, inputs = rest
    meaning = Meaning.IDS if tables else Meaning.CLASSES
    plugin, changed = _analysed(graph, size, uses, tuple(outputs), outputs)
    if plugin.pinned_by is not None:
        raise meaning.refused(plugin.pinned_by)
    layout = _layout(changed.analysis, tables, outputs, size)
    _check_choices(changed.analysis, layout, meaning)
    return Declared(changed, layout, tables, inputs, outputs, meaning=meaning)


def _check_choices(analysis: Analysis, layout: Layout, meaning: Meaning) -> None:
    """Raises `NothingToPruneError` if the program itself chooses units: of fewer it would choose others."""
    names = set(groups_of(layout))
    for recording in analysis.recordings:
        for index, choice in recording.choices.items():
            if names.intersection(groups_of(choice.layout)):
                operation = recording.trace.operations[index]
                why = f"it chooses {meaning.value} itself, and others of fewer"
                raise meaning.refused(Reason(why, operation.name, operation.module))


def _check_inside(analysis: Analysis, inputs: Sequence[int]) -> None:
    """Raises `NothingToPruneError` if ids leave the program other than through it."""
    for recording in analysis.recordings:
        why = leaving(recording.trace, [recording.trace.inputs[place] for place in inputs])
        if why:
            raise Meaning.IDS.refused(Reason(f"{READ}: {why}"))


def _analysed(
    graph: Graph,
    size: int,
    uses: Sequence[Mapping[int, Use]],
    free: Sequence[str],
    outputs: Mapping[str, int],
) -> tuple[Vocabulary, Graph]:
    """Ties axes once more, with the vocabulary as one axis."""
    before = graph.analysis
    plugin = Vocabulary(size, graph.registry.op_rules)
    for recording, used in zip(before.recordings, uses, strict=True):
        plugin.declare(recording.trace, used, _makers(recording.trace, outputs))
    registry = plugin.registry(graph.registry)
    recorded = tuple(
        (one.trace, attrs.evolve(one.example, free_outputs=(*one.example.free_outputs, *free)), one.training)
        for one in before.recordings
    )
    return plugin, Graph(graph.model, understood_again(before, recorded, registry), registry, graph.notes)


def _results(trace: Trace) -> Iterator[tuple[TensorRef, str]]:
    return zip(trace.results, trace.names, strict=True)


def _makers(trace: Trace, outputs: Mapping[str, int]) -> dict[int, Logits]:
    """Finds the operations that make some outputs of a program."""
    last = {ref.index: (one.index, place) for one in trace.operations for place, ref in enumerate(one.outputs)}
    found = {}
    for ref, name in _results(trace):
        if name in outputs and ref.index in last:
            index, place = last[ref.index]
            found[index] = Logits(place, outputs[name])
    return found


def _table(graph: Graph, given: str | None) -> str:
    """Returns the canonical name of the table of embeddings."""
    tree = graph.current.tree
    if given is not None:
        found = next((tree.aliases[name] for name in (given, f"{given}.weight") if name in tree.aliases), None)
        if found is None:
            raise ArgumentError("There is no such table.", where=repr(given), hint=nearest(given, tree.aliases))
        return found
    own = tree.names.get(id(getattr(_embeddings(graph.model), "weight", None)))
    if own is not None:
        return own
    looked_up = _looked_up(graph.analysis.recordings[0], range(len(graph.analysis.recordings[0].trace.inputs)))
    if len(looked_up) == 1:
        return looked_up.pop()
    why = f"inputs look rows up in {', '.join(sorted(looked_up))}" if looked_up else "no input looks rows up"
    raise ArgumentError("Which embedding is meant isn't clear.", why=why, hint='name it: table="embed_tokens"')


def _embeddings(model: nn.Module) -> object:
    """Returns what a model of transformers names as its embeddings; None where it names none."""
    ask = getattr(model, "get_input_embeddings", None)
    try:
        return ask() if callable(ask) else None
    except NotImplementedError:
        return None


def _looked_up(recording: Recording, places: Sequence[int]) -> set[str]:
    """Names the parameters in which a program looks rows up by some of its inputs."""
    trace = recording.trace
    inputs = [trace.inputs[place] for place in places if not trace.dtypes[trace.inputs[place].index].is_floating_point]
    return {name for name in _names_of_tables(trace, uses_of(trace, inputs)) if name}


def _names_of_tables(trace: Trace, uses: Mapping[int, Use]) -> Iterator[str]:
    names = {trace.memory(ref.index): name for name, ref in trace.parameters.items()}
    for index, use in uses.items():
        if use.table:
            yield names.get(trace.memory(trace.operations[index].arguments[use.table].index), "")


def _inputs_reaching(analysis: Analysis, table: str) -> tuple[int, ...]:
    first = analysis.recordings[0]
    return tuple(place for place in range(len(first.trace.inputs)) if table in _looked_up(first, [place]))


def _tables(analysis: Analysis, uses: Sequence[Mapping[int, Use]]) -> tuple[str, ...]:
    found = (_names_of_tables(one.trace, used) for one, used in zip(analysis.recordings, uses, strict=True))
    return tuple(dict.fromkeys(name for names in found for name in names if name))


def _logits(
    graph: Graph, size: int | None, uses: Sequence[Mapping[int, Use]], given: Sequence[str] | None
) -> dict[str, int]:
    """Finds the outputs that have a value for each id, with their dim along the ids."""
    trace = graph.analysis.recordings[0].trace
    strange = next((name for name in given or () if name not in trace.names), None)
    if strange is not None:
        raise ArgumentError(
            "The model has no such output.", where=repr(strange), hint=nearest(strange, filter(None, trace.names))
        )
    plugin, freed = _analysed(graph, size or 0, uses, EVERYTHING, {})
    if size is not None and plugin.pinned_by is not None:
        raise Meaning.IDS.refused(plugin.pinned_by)
    own = _ids_of(freed.analysis, uses, size)
    untied = size is None or given is not None or not _others(graph.analysis, uses, size)
    found = {}
    for ref, name in _results(trace):
        if given is None or name in given:
            layouts = freed.analysis.recordings[0].live.get(ref.index, ())
            dims = [dim for dim in range(len(layouts)) if _is_of_ids(freed.analysis, layouts[dim], own, size, untied)]
            dims += [] if given is None else [_last(trace.shapes[ref.index], name, size)]
            if dims:
                found[name] = dims[0]
    return found


def _is_of_ids(analysis: Analysis, layout: Layout, own: set[str], size: int | None, untied: bool) -> bool:
    """Tells whether a dim of an output has a value for each id: it is tied to the table, or only a head makes it."""
    names = set(groups_of(layout))
    if not names or size not in (None, layout.size):
        return False
    return names <= own or (untied and _is_head(analysis, layout))


def _last(shape: tuple[int, ...], name: str, size: int | None) -> int:
    """Returns the last dim of an output that somebody has named."""
    if not shape or size not in (None, shape[-1]):
        why = f"its shape is {shape}, and there are {size} ids"
        raise ArgumentError("The output has no value for each id.", where=repr(name), why=why)
    return len(shape) - 1


def _ids_of(analysis: Analysis, uses: Sequence[Mapping[int, Use]], size: int | None) -> set[str]:
    """Names the groups of the rows that are looked up."""
    layouts = (analysis.parameters[name].dims[0] for name in _tables(analysis, uses))
    return {name for layout in layouts if layout.size == size for name in groups_of(layout)}


def _others(analysis: Analysis, uses: Sequence[Mapping[int, Use]], size: int) -> set[str]:
    """Names the tables with as many rows that other inputs look up: a head may be for their ids."""
    first = analysis.recordings[0]
    looked_up = _looked_up(first, range(len(first.trace.inputs))) - {*_tables(analysis, uses)}
    return {name for name in looked_up if analysis.parameters[name].shape[0] == size}


def _is_head(analysis: Analysis, layout: Layout) -> bool:
    """Tells whether a dim of an output is made by layers that nothing else reads."""
    if not isinstance(layout, Units):
        return False
    members = analysis.groups[layout.group].members
    return all(member.role is not Role.IN for member in members) and any(member.dim == 0 for member in members)


def _layout(analysis: Analysis, tables: Sequence[str], outputs: Mapping[str, int], size: int) -> Layout:
    """How ids are made of units: as the rows of a table are, or else the values of an output."""
    dims = [analysis.parameters[name].dims[0] for name in tables if analysis.parameters[name].shape[0] == size]
    for ref, name in _results(analysis.recordings[0].trace):
        layouts = analysis.recordings[0].live.get(ref.index, ())
        if name in outputs and layouts:
            dims.append(layouts[outputs[name]])
    if not dims or not groups_of(dims[0]):
        raise NothingToPruneError("No id may leave.", where=", ".join(tables))
    return dims[0]

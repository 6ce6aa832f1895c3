"""The positions of a model: what is read by them, and the graph in which some may leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from prunekit_core.algebra.layout import groups_of
from prunekit_core.algebra.reasons import Reason
from prunekit_core.errors import ArgumentError, NothingToPruneError, RecordingError, nearest
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import understood_again
from prunekit_core.program.examples import Example
from prunekit_plugins.positions.axis import Positions
from prunekit_plugins.positions.longer import lengths_of, longer
from prunekit_plugins.positions.numbering import first_numbers, first_of
from prunekit_plugins.positions.reads import Read, learnt, reads_of
from prunekit_plugins.vocabulary.comparison import tensors_of
from prunekit_plugins.vocabulary.meaning import Meaning

Reads = Sequence[Mapping[int, Read]]
"""By recording: what is read by position, by the index of the operation."""


@attrs.frozen(eq=False)
class Table:
    """A learnt table with a row for each position.

    Attributes:
        name: Name of the parameter.
        first: The row of the first position.
        size: How many positions there are.
        used: How many of them the example inputs have.
        looked_up: Whether rows are looked up by their numbers, not taken as a run.
    """

    name: str
    first: int
    size: int
    used: int
    looked_up: bool


@attrs.frozen(eq=False)
class DeclaredPositions:
    """The positions of a model.

    Attributes:
        graph: The model, analysed so that positions may leave.
        tables: The tables that lose positions.
        group: Name of the group of the positions.
        size: How many there are.
        others: Names of tables with as many positions that stay whole.
        longest: Example inputs with as many positions as stay; None where the model doesn't run on them.
    """

    graph: Graph
    tables: tuple[Table, ...]
    group: str
    size: int
    others: tuple[str, ...]
    longest: Example | None

    def sizes(self, length: int) -> dict[int, int]:
        """Returns the number of positions, and that of the rows of each table, to what they become."""
        rows = {table.first + self.size: table.first + length for table in self.tables}
        return {**rows, self.size: length}


@attrs.frozen(eq=False)
class _Inputs:
    """Example inputs of other lengths.

    Attributes:
        example: The example inputs.
        lengths: How many positions they have.
        counted: Which of the tensors among them are numbers of positions, by their places.
        again: Analyses the model on other ones.
    """

    example: Example
    lengths: set[int]
    counted: Sequence[int]
    again: Callable[[Example], Graph]

    def of(self, length: int) -> Example:
        """Returns inputs with so many positions."""
        return longer(self.example, self.lengths, length, self.counted)

    def graph(self, length: int) -> Graph | None:
        """Analyses the model on inputs with so many positions; None if it doesn't run on them."""
        try:
            found = self.again(self.of(length))
        except RecordingError:
            return None
        used = {read.used for reads in _reads(found, self.counted) for read in reads.values()}
        return found if length in used else None


def declare(graph: Graph, length: int, given: str | None, again: Callable[[Example], Graph]) -> DeclaredPositions:
    """Declares the rows of tables that are read by position one axis.

    Args:
        graph: The model, analysed as ever.
        length: How many positions stay.
        given: The table: name of a parameter, or of the module that holds it; None for those that are found.
        again: Analyses the model on other example inputs.

    Raises:
        ArgumentError: There is no such table, several may be meant, or there aren't as many positions.
        NothingToPruneError: Positions aren't looked up, or the program does something else with the tables.
    """
    name = None if given is None else _named(graph, given)
    counted = () if name is None else _counted(graph, name)
    tables = _tables(graph, _reads(graph, counted))
    chosen = _chosen(tables, name)
    _check(chosen, length)
    inputs = _Inputs(graph.analysis.recordings[0].example, {one.used for one in chosen}, counted, again)
    longest = inputs.graph(length)
    found = _rehearsable(graph, longest, inputs, length)
    if not all(table.looked_up for table in chosen):
        _check_runs([graph, found, *([] if longest is None else [longest])], chosen, inputs)
    names = {table.name for table in chosen}
    reads = [_of(found, one, names, chosen[0].size, length) for one in _reads(found, counted)]
    others = tuple(sorted(one.name for one in tables if one.size == chosen[0].size and one.name not in names))
    return _declared(found, reads, chosen, (others, None if longest is None else inputs.of(length)))


def _rehearsable(graph: Graph, longest: Graph | None, inputs: _Inputs, length: int) -> Graph:
    """Returns the model analysed on the longest inputs on which a cut of it can be rehearsed.

    A run of all rows that there are is another operation than one of some of them.
    """
    runs = any(not read.indices for reads in _reads(longest or graph, inputs.counted) for read in reads.values())
    if longest is not None and not runs:
        return longest
    shorter = inputs.graph(length - 1) if length > 1 and inputs.lengths != {length - 1} else None
    return graph if shorter is None else shorter


def _check_runs(graphs: Sequence[Graph], tables: Sequence[Table], inputs: _Inputs) -> None:
    """Raises `NothingToPruneError` unless the runs of rows that are read of tables are as long as the inputs."""
    names = {table.name for table in tables}
    runs = [
        {read.used for reads in _reads(graph, inputs.counted) for read in reads.values() if read.name in names}
        for graph in graphs
    ]
    if len(set().union(*runs)) < 2:
        where = ", ".join(sorted(names))
        raise Meaning.POSITIONS.refused(
            Reason(f"nothing shows that as many rows of {where} are read as inputs are long")
        )


def _named(graph: Graph, given: str) -> str:
    """Returns the canonical name of a table that somebody has named."""
    aliases = graph.current.tree.aliases
    found = next((aliases[name] for name in (given, f"{given}.weight") if name in aliases), None)
    if found is None:
        read = sorted(table.name for table in _tables(graph, _reads(graph, ())))
        raise ArgumentError(
            "There is no such table.",
            where=repr(given),
            why=f"by position are read: {', '.join(read) or 'none, as far as is known without its name'}",
            hint=nearest(given, read) if read else 'table="wpe" names the parameter, or the module that holds it',
        )
    return found


def _counted(graph: Graph, table: str) -> tuple[int, ...]:
    """Returns the places of the inputs that are the numbers by which a table is read (``position_ids``)."""
    recording = graph.analysis.recordings[0]
    trace, values = recording.trace, tensors_of(recording.example)
    found = []
    for place, ref in enumerate(trace.inputs):
        if not trace.dtypes[ref.index].is_floating_point and first_of(values[place]) == 0:
            reads = reads_of(trace, first_numbers(trace, {ref.index: 0}), ())
            if any(read.name == table for read in reads.values()):
                found.append(place)
    return tuple(found)


def _reads(graph: Graph, counted: Sequence[int]) -> Reads:
    """What each recorded program reads by position.

    Args:
        graph: The analysed model.
        counted: The inputs that are numbers of positions, by their places.
    """
    tensors = graph.current.tree.tensors
    buffers = {name: first_of(tensor) for name, tensor in tensors.items() if graph.analysis.parameters[name].buffer}
    found = []
    for recording in graph.analysis.recordings:
        trace = recording.trace
        refs = {name: ref.index for name, ref in trace.parameters.items()}
        known = {refs[name]: first for name, first in buffers.items() if first is not None and name in refs}
        known |= {trace.inputs[place].index: 0 for place in counted}
        found.append(reads_of(trace, first_numbers(trace, known), lengths_of(recording.example)))
    return found


def _tables(graph: Graph, reads: Reads) -> list[Table]:
    """Lists the learnt tables that are read by position; runs of rows count where nothing is looked up."""
    parameters = {name for name, layout in graph.analysis.parameters.items() if not layout.buffer}
    every = [read for used in reads for read in learnt(used, parameters)]
    looked_up = [read for read in every if read.indices]
    tables: dict[str, Table] = {}
    for read in looked_up or [read for read in every if read.first == 0]:
        known = tables.get(read.name, Table(read.name, read.first, read.positions, 0, bool(read.indices)))
        first, used = min(known.first, read.first), max(known.used, read.used)
        tables[read.name] = Table(read.name, first, read.size - first, used, known.looked_up)
    return list(tables.values())


def _chosen(tables: Sequence[Table], name: str | None) -> tuple[Table, ...]:
    """Chooses the tables that lose positions: the one that is named, or all of the only size that there is."""
    if name is not None:
        found = tuple(table for table in tables if table.name == name)
        if not found:
            why = f"by position are read: {', '.join(table.name for table in tables) or 'none'}"
            raise ArgumentError("Positions don't look this table up.", where=name, why=why)
        return found
    free = [table for table in tables if table.used < table.size]
    for candidates in (tables, free):
        if len({table.size for table in candidates}) == 1:
            return tuple(candidates)
    if not tables:
        raise NothingToPruneError(
            "Positions aren't looked up in this program.",
            why="no learnt table is read by numbers that count from the first position on (arange, a mask added up)",
            hint="where positions turn (rotary) or bias an attention, max_position_embeddings is a number that you may "
            'set; where they are an input (position_ids), name the table: table="wpe"',
        )
    why = f"positions are looked up in {', '.join(f'{one.name} ({one.size})' for one in tables)}"
    raise ArgumentError(
        "Which table of positions is meant isn't clear.", why=why, hint=f'name it: table="{tables[0].name}"'
    )


def _check(tables: Sequence[Table], length: int) -> None:
    """Raises `ArgumentError` if so many positions can't stay."""
    size, used, where = tables[0].size, max(table.used for table in tables), ", ".join(one.name for one in tables)
    if length > size:
        raise ArgumentError(
            "There aren't as many positions.", where=where, why=f"{length} are to stay, and it has {size}"
        )
    if length == size:
        raise ArgumentError("Every position would stay.", where=where, why=f"it has {size}")
    if length < used:
        raise ArgumentError(
            "The example inputs have more positions than stay.",
            where=where,
            why=f"they have {used}, and {length} are to stay",
            hint="pass shorter example inputs",
        )


def _of(graph: Graph, reads: Mapping[int, Read], tables: set[str], size: int, length: int) -> dict[int, Read]:
    """Returns the reads of some tables, and of buffers with a value for each position."""
    buffers = {name for name, layout in graph.analysis.parameters.items() if layout.buffer}
    return {
        index: read
        for index, read in reads.items()
        if read.name in tables or (read.name in buffers and read.positions == size and _rehearsed(read, length))
    }


def _rehearsed(read: Read, length: int) -> bool:
    """Tells whether a read can be rehearsed with fewer rows: not a run of all that are left."""
    return bool(read.indices) or read.used < length


def _declared(
    graph: Graph, reads: Reads, tables: tuple[Table, ...], rest: tuple[tuple[str, ...], Example | None]
) -> DeclaredPositions:
    others, longest = rest
    names = {table.name for table in tables}
    alone = [{index: read for index, read in used.items() if read.name in names} for used in reads]
    refused: Reason | None = None
    for tried in (reads, alone):  # a buffer that is read otherwise as well stays as it is
        plugin, found = _analysed(graph, tables[0].size, tried)
        if plugin.pinned_by is None:
            group = _group(found, tables[0], tried)
            refused = _used_whole(found, group)
            if refused is None:
                return DeclaredPositions(found, tables, group, tables[0].size, others, longest)
        else:
            refused = plugin.pinned_by
    assert refused is not None
    raise Meaning.POSITIONS.refused(refused)


def _used_whole(graph: Graph, group: str) -> Reason | None:
    """Tells what computes something of all rows of the tables; None where nothing does."""
    for recording in graph.analysis.recordings:
        for index, wholes in recording.wholes.items():
            if any(group in groups_of(use.layout) for use in wholes.uses):
                operation = recording.trace.operations[index]
                return Reason("its result depends on all of them", operation.name, operation.module)
    return None


def _group(graph: Graph, table: Table, reads: Reads) -> str:
    """Names the group of the positions."""
    dim = next(read.dim for used in reads for read in used.values() if read.name == table.name and read.whole)
    (name,) = groups_of(graph.analysis.parameters[table.name].dims[dim])
    return name


def _analysed(graph: Graph, size: int, reads: Reads) -> tuple[Positions, Graph]:
    """Ties axes once more, with the positions as one axis."""
    before = graph.analysis
    plugin = Positions(size, graph.registry.op_rules)
    for recording, used in zip(before.recordings, reads, strict=True):
        plugin.declare(recording.trace, used)
    registry = plugin.registry(graph.registry)
    recorded = tuple((one.trace, one.example, one.training) for one in before.recordings)
    return plugin, Graph(graph.model, understood_again(before, recorded, registry), registry, graph.notes)

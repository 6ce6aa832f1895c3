"""What recordings didn't see: parameters (or rows of them) that nothing used, modes that couldn't be recorded, results
left behind."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import nn

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis
from prunekit_core.algebra.reasons import Reason, ReasonKind
from prunekit_core.groups.propagate import Propagation
from prunekit_core.program.op_call import Role
from prunekit_core.program.rules import RuleTable, scaling_of
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Trace

_LISTED = 6
"""Names in a line of the report."""


def keep_untouched(untouched: Iterable[str], parameters: Mapping[str, tuple[Axis, ...]]) -> None:
    """Pins parameters that no recording touched."""
    for name in untouched:
        for axis in parameters[name]:
            axes.pin(axis, Reason("no recording touched this parameter", kind=ReasonKind.UNTOUCHED))


def keep_widths(
    untouched: Sequence[str], parameters: Mapping[str, tuple[Axis, ...]], propagations: Sequence[Propagation]
) -> None:
    """Pins whatever could feed a parameter that may be used in a mode that wasn't recorded: all widths that fit.

    Args:
        untouched: Names of the parameters that no recording touched.
        parameters: Axes of all parameters and buffers.
        propagations: What is known of the activations.
    """
    sizes: dict[int, str] = {}
    for name in untouched:
        for axis in parameters[name]:
            sizes.setdefault(axes.resolve(axis).size, name)
    for propagation in propagations if sizes else ():
        for dims in propagation.tensors.values():
            for axis in dims:
                size = axes.resolve(axis).size
                fitting = [name for wanted, name in sizes.items() if size > 1 and wanted % size == 0]
                if fitting:
                    axes.pin(axis, Reason(f"{fitting[0]} may be used with it in a mode that wasn't recorded"))


def keep_entries(
    untouched: Sequence[str], modules: Mapping[str, nn.Module], propagations: Sequence[Propagation]
) -> list[str]:
    """Pins what goes into entries of lists of modules, and comes out, where others that no recording ran may get it.

    That is so where a program decides something by values, and then runs some entries of a list: experts that the
    example inputs sent nothing to run for other inputs.

    Args:
        untouched: Names of the parameters that no recording touched.
        modules: The modules by path.
        propagations: What is known of the activations.

    Returns:
        Lines for the report.
    """
    containers = {path for path, module in modules.items() if isinstance(module, nn.ModuleList | nn.ModuleDict)}
    ran: dict[str, set[str]] = {}  # by list: entries that run at all
    decided: set[str] = set()  # lists of which entries run after a decision
    for propagation in propagations:
        start = min(propagation.trace.decisions, default=math.inf)
        for operation in propagation.trace.operations:
            for container, entry in _entries(operation.module, containers):
                ran.setdefault(container, set()).add(entry)
                if operation.index > start:
                    decided.add(container)
    missing: dict[str, str] = {}
    for name in untouched:
        for container, entry in _entries(name, containers):
            if container in decided and entry not in ran[container]:
                missing.setdefault(container, name)
    for container, name in missing.items():
        reason = Reason(f"{name} may read it, too: values decide what runs, and the example inputs didn't run that")
        for propagation in propagations:
            for axis in _borders(propagation, container):
                axes.pin(axis, reason)
    advice = "what goes in and comes out keeps its width; example inputs that run all entries free it"
    return [f"WARNING: values decide which entries of {one} run, and no recording ran all: {advice}" for one in missing]


def _entries(path: str, containers: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields the lists around a module or a tensor, innermost first, each with the name of the entry."""
    while path:
        path, _, entry = path.rpartition(".")
        if path in containers:
            yield path, entry


def _borders(propagation: Propagation, container: str) -> Iterator[Axis]:
    """Yields the axes of tensors that one entry of a list makes and something else reads, or the other way round."""
    trace, made = propagation.trace, dict[int, str]()
    own = {ref.index for ref in trace.parameters.values()}
    for operation in trace.operations:
        entry = dict(_entries(operation.module, (container,))).get(container, "")
        for ref in operation.references():
            if ref.index not in own and made.get(ref.index, "") != entry:
                yield from propagation.tensors[ref.index]
        made.update({ref.index: entry for ref in operation.outputs})


def keep_unread(
    parameters: Mapping[str, tuple[Axis, ...]],
    propagations: Sequence[Propagation],
    roles: Mapping[tuple[str, int], Role],
    rules: RuleTable,
) -> None:
    """Pins units that nobody reads, and weights that read what nobody makes.

    Rows of a table behind the length of the example (``self.position[:, :length]``) belong to other examples. A weight
    that reads a first state of zeros reads, one step later, what it makes.

    Args:
        parameters: Axes of all parameters and buffers.
        propagations: What is known of the activations.
        roles: What rules and layer types say about parameter dims.
        rules: The op rules.
    """
    held: dict[int, tuple[Axis, set[Role | None]]] = {}
    for name, dims in parameters.items():
        for dim, axis in enumerate(dims):
            for leaf in axes.leaves(axis):
                if leaf.size > 1 and leaf.reason is None:
                    held.setdefault(id(leaf), (leaf, set()))[1].add(roles.get((name, dim)))
    rest = {key for key, (_, found) in held.items() if Role.IN not in found}
    for propagation in propagations:
        rest -= _leaves(use.axis for uses in propagation.effects.whole.values() for use in uses)
        rest -= _leaves(axis for ref in propagation.trace.results for axis in propagation.tensors[ref.index])
    readers = {key for key, (_, found) in held.items() if found == {Role.IN}}
    constant: set[int] = set()
    for propagation in propagations if rest or readers else ():
        made, consumed = _ends(propagation, rules)
        rest -= consumed
        constant |= readers & made
    for key in rest:
        axes.pin(held[key][0], Reason("no recording reads these units"))
    for dims in parameters.values():
        if constant & _leaves(dims):  # what such a weight makes is what it reads, one step later
            for axis in dims:
                axes.pin(axis, Reason("it reads constants only (a first state?): a longer example may say more"))


def _leaves(dims: Iterable[Axis]) -> set[int]:
    return {id(leaf) for axis in dims for leaf in axes.leaves(axis)}


def _ends(propagation: Propagation, rules: RuleTable) -> tuple[set[int], set[int]]:
    """Lists the axes that an operation makes of nothing (zeros), and those that one computes something of and doesn't
    pass on; what only moves elements, or leaves some out, computes nothing."""
    made, consumed = set[int](), set[int]()
    trace, tensors = propagation.trace, propagation.tensors
    for operation in trace.operations:
        if operation.index not in propagation.unread:
            given = _leaves(axis for ref in operation.references() for axis in tensors[ref.index])
            passed = _leaves(axis for ref in operation.outputs for axis in tensors[ref.index])
            scaling = scaling_of(rules, operation.op)
            if scaling in (Scaling.ZEROS, Scaling.NUMBERS):
                made |= passed - given
            moves = operation.outputs and all(ref.index in trace.shares for ref in operation.outputs)
            if scaling is not Scaling.MOVED and not moves:
                consumed |= given - passed
    return made, consumed


def stored(trace: Trace, live: Collection[int]) -> Iterator[str]:
    """Says what a forward leaves behind that can lose units: it isn't taken for an output, as the forward reads it.

    Args:
        trace: The forward.
        live: Indices of the tensors that can lose units.
    """
    for ref, where in trace.stored.items():
        if ref.index in live:
            yield f"what the forward leaves {where} may lose units; where that is wanted whole, return it"


def missed(untouched: Sequence[str], traces: Sequence[Trace]) -> list[str]:
    """Warns of parameters that no recording used though their module, or the one right around it, ran."""
    ran = {operation.module for trace in traces for operation in trace.operations} | {""}
    ran |= {path.rpartition(".")[0] for path in ran}
    owners = {name: name.rpartition(".")[0] for name in untouched}
    found = [name for name, owner in owners.items() if owner in ran or owner.rpartition(".")[0] in ran]
    if not found:
        return []
    listed = ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    advice = "a program that uses them with other inputs or settings may not fit the pruned model: pass those as well"
    return [f"WARNING: modules ran without these parameters of theirs: {listed}; {advice} (more_inputs)"]

"""Numbers that a program reads from attributes of its modules, exchanged without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit_core.errors import RehearsalError
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.rehearse.ladder import Rehearsed
from prunekit_core.rehearse.rehearsal import Stage
from prunekit_core.rehearse.temperatures import find_rescales


def absorb_constants(graph: Graph, values: Mapping[tuple[str, str], float]) -> Plan:
    """Plans how the weights make up for other factors in a program, such as another temperature of an attention.

    A layer that reads ``scaling = 0.25`` and should read ``0.5`` computes the same when the rows that make its queries
    are halved. Which rows these are is found by replaying the program with the new values, as for pruned sizes.

    Args:
        graph: The graph of the model as it is; nothing has been pruned through it.
        values: (Module path, attribute) to its new value.

    Returns:
        A plan that only scales rows of parameters. Apply it and set the attributes: outputs stay as they were.

    Raises:
        RehearsalError: With the new values another program runs, or rows that make up for one can't be found.
    """
    analysis = graph.analysis
    mismatch, drifts = Stage(analysis, graph.registry, {}).replay(dict(values))
    if mismatch is not None:
        raise RehearsalError("With other constants another program runs.", why=mismatch.why)
    found = find_rescales(analysis, graph.registry.op_rules, Rehearsed({}, (), tuple(drifts)))
    if found.unmet:
        why = "; ".join(str(unmet.constant) for unmet in found.unmet[:3])
        raise RehearsalError("The weights can't make up for another constant.", why=why)
    return Plan(rescales=found.rescales)

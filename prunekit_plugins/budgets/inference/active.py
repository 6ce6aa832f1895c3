"""Active parameters: those that one token is multiplied by, where it is sent to a few experts of many."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit_core.algebra.layout import Layout, groups_of
from prunekit_core.algebra.polynomial import Number, Polynomial, SymbolicSizer, as_polynomial, multiplied
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import Compiled, CostModel, compile_sum
from prunekit_core.groups.expert_lists import first_entries
from prunekit_core.groups.recording import Recording
from prunekit_core.program.trace import Trace


class ActiveCost(CostModel):
    """Parameter elements that one token uses: of a mixture's experts as many as its router chooses for each token.

    Routers count whole, as they score all experts; so do experts that no choice was found for, and all other
    parameters, tables of embeddings included.
    """

    previewed = False

    def compile(self, analysis: Analysis) -> Compiled:
        """Adds all parameters up to one polynomial."""
        chosen, total = _chosen(analysis.recordings[0]), as_polynomial(0)
        routers = _routers(analysis.recordings[0], chosen)
        for name, lists in first_entries(analysis.lists, analysis.parameters).items():
            parameter = analysis.parameters[name]
            if not parameter.buffer:
                counts = {layout: count for layout, count in chosen.items() if name not in routers[layout]}
                total += _elements((*lists, *parameter.dims), counts)
        return compile_sum(total, analysis)


def _elements(dims: tuple[Layout, ...], chosen: Mapping[Layout, int]) -> Polynomial:
    """The elements of a tensor, of whose dims of experts only those count that a token is sent to."""
    size = SymbolicSizer()
    sizes: list[Number] = [chosen[dim] if dim in chosen else size(dim) for dim in dims]
    return as_polynomial(multiplied(sizes))


def _chosen(recording: Recording) -> dict[Layout, int]:
    """Axes of experts, by their layouts, with how many of them the program chooses for each token, in turn too."""
    found: dict[Layout, int] = {}
    for index, choice in recording.choices.items():
        if groups_of(choice.layout):
            in_turn = [one.size for one in recording.least.get(index, ()) if one.layouts == (choice.layout,)]
            found[choice.layout] = max(found.get(choice.layout, 0), choice.count, *in_turn)
    return found


def _routers(recording: Recording, chosen: Mapping[Layout, int]) -> dict[Layout, set[str]]:
    """Names the parameters that the first choice from each axis depends on: they are read for all of its experts."""
    trace, makers = recording.trace, dict[int, int]()
    for operation in trace.operations:
        for ref in operation.outputs:
            makers.setdefault(ref.index, operation.index)
    first: dict[Layout, int] = {}
    for index, choice in sorted(recording.choices.items()):
        if choice.layout in chosen:
            first.setdefault(choice.layout, index)
    before = {layout: _before(trace, index, makers) for layout, index in first.items()}
    return {
        layout: {name for name, ref in trace.parameters.items() if ref.index in seen} for layout, seen in before.items()
    }


def _before(trace: Trace, index: int, makers: Mapping[int, int]) -> set[int]:
    """Lists the tensors that an operation depends on."""
    seen, pending = set[int](), [index]
    while pending:
        operation = trace.operations[pending.pop()]
        for ref in operation.references():
            if ref.index not in seen:
                seen.add(ref.index)
                maker = makers.get(ref.index, operation.index)
                if maker < operation.index:
                    pending.append(maker)
    return seen


active_params = ActiveCost()
"""Parameter elements that one token uses; see `ActiveCost`."""

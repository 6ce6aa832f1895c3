"""What a user declares about a model and the recording finds by itself: checked, never believed against the program."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
from torch import nn

from prunekit_core.algebra.layout import Concat, Layout, Product, Units, groups_of
from prunekit_core.arguments import is_count
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.program.op_call import Kind, Role


def check_heads(graph: Graph, declared: Mapping[nn.Module, int]) -> list[str]:
    """Compares declared numbers of heads with those found.

    Args:
        graph: The graph.
        declared: Layer to the number of heads that its outputs are made of.

    Returns:
        Lines for the report, for layers whose outputs can't shrink anyway.

    Raises:
        ArgumentError: A number contradicts the program.
    """
    notes = []
    for layer, count in declared.items():
        path = graph.current.tree.path_of(layer)
        heads = _heads_of(graph, path)
        if heads is None:
            notes.append(f"num_heads of {path}: nothing of its outputs can shrink head by head, so it has no effect")
        elif heads.count != count and (heads.exact or heads.count % count):
            raise ArgumentError(
                "num_heads contradicts the model.",
                where=path,
                why=f"declared are {count} heads, its outputs are made of {heads.count}",
                hint="leave num_heads out: heads are found from the forward pass",
            )
    return notes


@attrs.frozen
class _Heads:
    """Heads found in a layer; where heads can't leave, packed projections (q, k and v in one) may be counted in."""

    count: int
    exact: bool


def _heads_of(graph: Graph, path: str) -> _Heads | None:
    """Finds how many heads the outputs of a layer (or of what a container contains) are made of."""
    for name, parameter in graph.analysis.parameters.items():
        inside = name.rpartition(".")[0]
        if inside == path or (inside.startswith(path + ".") and path):
            found = _count_heads(graph, parameter.dims[0]) if len(parameter.dims) > 1 else None
            if found is not None:
                return found
    return None


def _count_heads(graph: Graph, layout: Layout) -> _Heads | None:
    if isinstance(layout, Concat):
        counts = [_count_heads(graph, part) for part in layout.parts]
        return next((count for count in counts if count is not None), None)
    factors = layout.parts if isinstance(layout, Product) else (layout,)
    kinds = [{graph.analysis.groups[name].kind for name in groups_of(factor)} for factor in factors]
    heads = [f.size for f, kind in zip(factors, kinds, strict=True) if kind & {Kind.HEADS, Kind.QUERIES_PER_HEAD}]
    if heads:
        return _Heads(math.prod(heads), exact=True)
    for factor in factors:
        if isinstance(factor, Concat):
            return _count_heads(graph, factor)
    if isinstance(factors[-1], Units) and Kind.HEAD_DIM in kinds[-1]:
        return _Heads(layout.size // factors[-1].size, exact=False)
    return None


def channel_blocks(graph: Graph, outputs: Mapping[nn.Module, int], inputs: Mapping[nn.Module, int]) -> dict[str, int]:
    """Translates declared channel groups into blocks of unit groups that must lose the same positions.

    Args:
        graph: The graph.
        outputs: Layer to the number of groups that its output channels form.
        inputs: The same for input channels.

    Returns:
        Group name to its number of blocks; the least common multiple where several layers declare one.

    Raises:
        ArgumentError: The channels of a layer can't be divided like that.
    """
    blocks: dict[str, int] = {}
    for declared, role in ((outputs, Role.OUT), (inputs, Role.IN)):
        for layer, count in declared.items():
            path = graph.current.tree.path_of(layer)
            if not is_count(count):
                raise ArgumentError(
                    "A number of channel groups must be a positive integer.", where=path, why=f"{count!r}"
                )
            for group in graph.groups():
                for member in group.members:
                    if member.module != path or member.role not in (role, Role.ALONG):
                        continue
                    layout = graph.analysis.parameters[member.parameter].dims[member.dim]
                    if not isinstance(layout, Units):
                        continue  # the program itself divides the channels, and that division holds
                    joined = math.lcm(blocks.get(group.name, 1), count)
                    if group.size % joined:
                        raise ArgumentError(
                            "The channels of a layer can't be divided into these groups.",
                            where=path,
                            why=f"{group.size} channels, {joined} groups",
                        )
                    blocks[group.name] = joined
    return blocks

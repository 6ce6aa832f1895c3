"""Nodes: layers and parameters with what feeds them and what they feed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from prunekit.plugin import DependencyGraph
from prunekit_plugins.compat.torch_pruning import ops


class Node:
    """A layer (or a parameter that no layer owns) in a graph.

    Args:
        module: The layer or parameter.
        grad_fn: Kept as given; prunekit records operations and needs no autograd graph.
        name: Its dotted name.

    Attributes:
        inputs: Nodes whose outputs reach this one through operations without parameters.
        outputs: Nodes that are reached alike.
        type: The kind of layer.
        module_class: The class of the module.
        pruning_dim: The dim that holds channels, for a parameter; -1 otherwise.
        dependencies: Dependencies in which it is the source; filled in by users only.
    """

    def __init__(self, module: Any, grad_fn: Any = None, name: str | None = None) -> None:
        self.module = module
        self.grad_fn = grad_fn
        self._name = name
        self.type = ops.module2type(module)
        self.module_class = type(module)
        self.inputs: list[Node] = []
        self.outputs: list[Node] = []
        self.dependencies: list[Any] = []
        self.pruning_dim = -1

    @property
    def name(self) -> str:
        """The dotted name with a description of the module."""
        module = self.module
        text = str(tuple(module.shape)) if isinstance(module, nn.Parameter) else str(module)
        return text if self._name is None else f"{self._name} ({text})"

    def add_input(self, node: Node) -> None:
        """Adds a node that feeds this one."""
        if node not in self.inputs:
            self.inputs.append(node)

    def add_output(self, node: Node) -> None:
        """Adds a node that this one feeds."""
        if node not in self.outputs:
            self.outputs.append(node)

    def details(self) -> str:
        """Returns the node with its neighbours, one per line."""
        lines = [f"<Node: ({self.name})>"]
        for label, nodes in (("inputs", self.inputs), ("outputs", self.outputs)):
            lines.append(f"{label}:")
            lines += [f"  {node.name}" for node in nodes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Node: ({self.name})>"

    def __str__(self) -> str:
        return f"<Node: ({self.name})>"


def nodes_of(graph: DependencyGraph) -> dict[Any, Node]:
    """Makes the nodes of all layers that an operation of the first recording used, and connects them.

    Args:
        graph: A graph that was built.

    Returns:
        Module to node, in the order of the model's modules.
    """
    model = graph.model
    modules = dict(model.named_modules(remove_duplicate=False))
    edges = layer_edges(graph)
    used = {name for edge in edges for name in edge}
    nodes = {path: Node(module, None, path) for path, module in modules.items() if path in used}
    for source, target in edges:
        nodes[source].add_output(nodes[target])
        nodes[target].add_input(nodes[source])
    return {modules[path]: node for path, node in nodes.items()}


def layer_edges(graph: DependencyGraph) -> list[tuple[str, str]]:
    """Lists pairs of layers, the first of which feeds the second through operations without parameters.

    Modules without parameters are no layers: what flows through them belongs to the layer before.
    """
    trace = graph.analysis.recordings[0].trace
    if not trace.parameters:
        return []
    tensor = type(next(iter(trace.parameters.values())))
    owners = {ref.index: name.rpartition(".")[0] for name, ref in trace.parameters.items()}
    origin: dict[int, frozenset[str]] = {index: frozenset([owner]) for index, owner in owners.items()}
    edges: dict[tuple[str, str], None] = {}
    for operation in trace.operations:
        used = list(_indices(operation.arguments, tensor))
        incoming = frozenset().union(*(origin.get(index, frozenset()) for index in used))
        here = frozenset(owners[index] for index in used if index in owners)
        for target in sorted(here):
            edges.update({(source, target): None for source in sorted(incoming - here)})
        for ref in operation.outputs:
            origin[ref.index] = here or incoming
    return list(edges)


def _indices(value: Any, tensor: type[Any]) -> Iterator[int]:
    if isinstance(value, tensor):
        yield value.index
    elif isinstance(value, Mapping):
        yield from _indices(list(value.values()), tensor)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _indices(item, tensor)

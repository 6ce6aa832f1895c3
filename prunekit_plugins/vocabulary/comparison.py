"""A model with fewer ids held against the one with all of them, by numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import torch
from torch import nn

from prunekit_core.algebra.layout import Kept
from prunekit_core.check.exactness import difference
from prunekit_core.check.masked_run import run_copy
from prunekit_core.errors import VerificationError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.surgery import select_positions
from prunekit_core.modules.tree import named_tensors
from prunekit_core.program.examples import Example
from prunekit_core.record.listener import Listener
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.vocabulary.ids import IdMap
from prunekit_plugins.vocabulary.meaning import Meaning

TOLERANCE = 1e-4
"""Relative error that other kernels for other sizes may make."""


@attrs.frozen(eq=False)
class Comparison:
    """What the original computes, to hold the smaller model against.

    Attributes:
        expected: Its outputs, of those with a value for each unit the values of the units that stay.
        graph: The original, analysed.
        example: The example inputs of the smaller model.
        meaning: What the units are.
    """

    expected: Sequence[torch.Tensor]
    graph: Graph
    example: Example
    meaning: Meaning

    @classmethod
    def of(cls, graph: Graph, kept: Kept, old: Example, new: Example, meaning: Meaning) -> Comparison | None:
        """Runs the original; None where the model or the inputs have no values.

        Args:
            graph: The model, analysed.
            kept: The units of its groups that stay.
            old: Example inputs of the original.
            new: Those of the smaller model.
            meaning: What the units are.
        """
        recording = graph.analysis.recordings[0]
        if any(tensor.is_meta for tensor in (*named_tensors(graph.model).values(), *tensors_of(old))):
            return None
        outputs = run_copy(graph.model, graph.analysis, graph.registry, old, Listener(), recording.training)
        places = [recording.positions(ref.index, kept) for ref in recording.trace.results]
        expected = [_selected(found, dims) for found, dims in zip(outputs, places, strict=True)]
        return cls(expected, graph, new, meaning)

    def confirm(self, model: nn.Module) -> None:
        """Raises `VerificationError` unless a model with fewer units computes the same."""
        graph, recording = self.graph, self.graph.analysis.recordings[0]
        found = run_copy(model, graph.analysis, graph.registry, self.example, Listener(), recording.training)
        names = recording.trace.names
        for name, expected, own in zip(names, self.expected, found, strict=True):
            error = difference(expected, own)
            if not error <= TOLERANCE:
                raise VerificationError(
                    f"The model with fewer {self.meaning.value} computes something else for those that stay.",
                    where=name or "the output",
                    why=f"relative error {error:.2e}",
                    hint="please report it, with the model",
                )


def _selected(tensor: torch.Tensor, dims: dict[int, torch.Tensor]) -> torch.Tensor:
    return select_positions(tensor.detach(), dims) if dims else tensor.detach()


def tensors_of(example: Example) -> list[torch.Tensor]:
    """Lists the tensors among example inputs."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def exchanged(example: Example, inputs: Sequence[int], ids: IdMap, *, new: bool) -> Example:
    """Returns example inputs with ids that stay, under their old numbers or their new ones.

    Ids that leave are exchanged for others that stay.
    """
    places = itertools.count()

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if next(places) not in inputs or tensor.is_meta:
            return tensor
        kept = torch.tensor(ids.kept, device=tensor.device, dtype=torch.long)
        stays = torch.isin(tensor.long(), kept) | (tensor < 0)
        old = torch.where(stays, tensor.long(), kept[tensor.long().clamp(min=0) % len(kept)]).to(tensor.dtype)
        return ids.of(old) if new else old

    args, kwargs = pytree.tree_map_only(torch.Tensor, one, (example.args, example.kwargs))
    return attrs.evolve(example, args=args, kwargs=kwargs)


def ids_among(example: Example, inputs: Sequence[int]) -> set[int]:
    """Returns the ids in some of the tensors among example inputs."""
    tensors = tensors_of(example)
    return {number for place in inputs for number in tensors[place].flatten().tolist() if number >= 0}

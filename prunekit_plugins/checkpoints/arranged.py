"""Files that hold a model's tensors under other names or in parts: experts apart that the model holds stacked.

Many checkpoints of mixtures of experts hold every expert's matrices apart (``experts.0.gate_proj.weight``), as the
modules were once; transformers 5 holds one stack of all experts (``experts.gate_up_proj``), in which gate and up are
joined. Which tensors make a stack is a table of names here: plans are applied to files without a model, and without
the library that it is from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import torch

from prunekit_plugins.checkpoints.shards import Weights
from prunekit_plugins.checkpoints.tensorfile import Stored, room_for

STACKS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
    "up_proj": (("up_proj",),),
}
"""Name of a stack ``[experts, outputs, inputs]`` to the names that matrices ``[outputs, inputs]`` of one expert may
have, joined along their outputs: of Qwen, DeepSeek, GLM and most others, of Mixtral, and of vision towers."""
OTHER_NAMES = (
    (".mlp.", ".block_sparse_moe."),
    (".mlp.router.weight", ".block_sparse_moe.gate.weight"),
    (".experts.gate_up_proj", ".input_linear.weight"),
    (".experts.down_proj", ".output_linear.weight"),
    (".router.weight", ".router.layer.weight"),
    (".mlp.gate.e_score_correction_bias", ".block_sparse_moe.e_score_correction_bias"),
)
"""What stands in a name of the model, and what stands there in files: of Mixtral, Phi-MoE, MiniMax, and of Granite."""
_EXPERTS = ".experts."


@attrs.frozen
class Parts:
    """The tensors of files that make one of the model's.

    Attributes:
        names: For each expert the names of its matrices, in the order in which they are joined; for a tensor that only
            has another name, that name alone.
        stored: Dtype and shape of the whole.
        stacked: Whether it is a stack.
    """

    names: tuple[tuple[str, ...], ...]
    stored: Stored
    stacked: bool

    def all(self) -> Iterator[str]:
        """Yields the names of all of them."""
        for names in self.names:
            yield from names


class Arranged:
    """The tensors of a checkpoint, those of a model under its names: stacks are made of their parts.

    Args:
        weights: The checkpoint.
        wanted: Names of the model's tensors; what isn't named stays as it is in the files.

    Attributes:
        path: Where the checkpoint is.
        tensors: What it holds, by name.
    """

    def __init__(self, weights: Weights, wanted: Iterable[str]) -> None:
        self._weights, self.path = weights, Path(weights.path)
        found = {name: find_parts(name, weights.tensors) for name in wanted if name not in weights.tensors}
        self._parts = {name: parts for name, parts in found.items() if parts is not None}
        firsts = {next(parts.all()): name for name, parts in self._parts.items()}
        used = {part for parts in self._parts.values() for part in parts.all()}
        self.tensors: dict[str, Stored] = {}
        for name, stored in weights.tensors.items():
            if name in firsts:
                self.tensors[firsts[name]] = self._parts[firsts[name]].stored
            elif name not in used:
                self.tensors[name] = stored

    def read(self, name: str, rows: tuple[int, int] | None = None, room: torch.Tensor | None = None) -> torch.Tensor:
        """Reads a tensor, or a run of positions along its dim 0 (experts, in a stack); see `TensorFile.read`."""
        parts = self._parts.get(name)
        if parts is None:
            return self._weights.read(name, rows, room)
        if not parts.stacked:
            return self._weights.read(parts.names[0][0], rows, room)
        start, stop = rows or (0, len(parts.names))
        shape, dtype = (stop - start, *parts.stored.shape[1:]), parts.stored.dtype
        whole = torch.empty(shape, dtype=dtype, device="cpu") if room is None else room_for(room, dtype, shape)
        for place, names in enumerate(parts.names[start:stop]):
            first = 0
            for part in names:
                last = first + self._weights.tensors[part].shape[0]
                self._weights.read(part, room=whole[place, first:last].view(torch.uint8).view(-1))
                first = last
        return whole


def find_parts(name: str, files: Mapping[str, Stored]) -> Parts | None:
    """Finds the tensors that make one of a model's, where files hold no tensor of its name.

    Args:
        name: The model's name for it.
        files: The tensors of the files.

    Returns:
        The tensors; None where nothing is found, or what is found doesn't fit together.
    """
    others = [name, *(name.replace(ours, theirs) for ours, theirs in OTHER_NAMES if ours in name)]
    for other in others[1:]:
        if other in files:
            return Parts(((other,),), files[other], stacked=False)
    for other in others:
        base, experts, leaf = other.rpartition(_EXPERTS)
        for leaves in STACKS.get(leaf, ()) if experts else ():
            found = _stack(f"{base}{_EXPERTS}", leaves, files)
            if found is not None:
                return found
    return None


def _stack(base: str, leaves: Sequence[str], files: Mapping[str, Stored]) -> Parts | None:
    """Makes a stack of the matrices of experts that are numbered from zero; None where there are none that fit."""
    each = (tuple(f"{base}{expert}.{leaf}.weight" for leaf in leaves) for expert in itertools.count())
    names = list(itertools.takewhile(lambda one: all(name in files for name in one), each))
    if not names:
        return None
    kinds = {tuple((files[part].dtype, files[part].shape) for part in one) for one in names}
    first = [files[part] for part in names[0]]
    alike = {(part.dtype, part.shape[1:]) for part in first}
    if len(kinds) != 1 or len(alike) != 1 or len(first[0].shape) != 2:
        return None
    shape = (len(names), sum(part.shape[0] for part in first), first[0].shape[1])
    return Parts(tuple(names), Stored(first[0].dtype, shape), stacked=True)

"""Applying a plan to a checkpoint on disk: no model is built, and only pieces of tensors are in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch

from prunekit_core.algebra import layout as layouts
from prunekit_core.errors import CheckpointError
from prunekit_core.modules.edits import ParameterCut, Rescale
from prunekit_core.modules.surgery import scale_rows
from prunekit_core.plans.plan import Plan
from prunekit_plugins.checkpoints.arranged import Arranged
from prunekit_plugins.checkpoints.checkpoint import metadata_of, plan_of
from prunekit_plugins.checkpoints.destination import check_format
from prunekit_plugins.checkpoints.provenance import Protocol
from prunekit_plugins.checkpoints.shards import Weights, write_weights
from prunekit_plugins.checkpoints.tensorfile import Stored, room_for

SHARD = "5GB"
"""Size of the files of a folder, where nobody says."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Progress = Callable[[int, int], None]
"""Called with the bytes read so far, and with all bytes there are."""


def prune_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    plan: Plan,
    *,
    protocol: Protocol | None = None,
    max_shard_size: int | str | None = None,
    progress: Progress | None = None,
    repaired: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Prunes the tensors of a checkpoint on disk; what it writes is what `save` writes of the pruned model.

    Tensors that the plan doesn't change are copied, under the names that they have in the source; those that it takes
    out are passed over. Experts that the source holds apart are written as the stacks that the model holds, if the plan
    changes these. Non-persistent buffers, attributes and exchanged modules are no part of a checkpoint: `load`
    sees to them.

    Args:
        source: A safetensors file, a folder with ``model.safetensors`` or ``model.safetensors.index.json``, or that
            index. One that prunekit wrote is pruned further, and the destination holds the plan of all steps together.
        destination: File to write; a folder where the source is a folder or an index, or with ``max_shard_size``.
        plan: The plan from the model whose weights the source holds.
        protocol: How the plan came about, stored beside it.
        max_shard_size: Bytes that one file holds at most; see `save`. None means one file for a file, ``"5GB"`` for a
            folder.
        progress: Called with the bytes read so far, and with all bytes there are.
        repaired: Values of pruned tensors that take the place of the cut ones, by name: what compensation found
            (`PruneResult.repaired`).

    Raises:
        CheckpointError: The source can't be read or is for another model, or the destination can't be written.
        PlanError: The source was pruned before, and the plan wasn't made for what is left of the model.
        ArgumentError: ``max_shard_size`` is not a size, or the destination is one of another format (``.gguf``).
    """
    check_format(Path(destination))
    weights = Weights(source)
    if Path(destination).exists() and any(Path(destination).samefile(file.path) for file in weights.files.values()):
        raise CheckpointError("The destination is the source.", where=os.fspath(destination), hint="name another file")
    whole = plan_of(weights).then(plan) if weights.ours else plan
    pruned = _Pruned(Arranged(weights, _named(plan, repaired or {})), plan, progress, repaired or {})
    if max_shard_size is None and (weights.sharded or Path(source).is_dir()):
        max_shard_size = SHARD
    write_weights(destination, pruned.tensors, metadata_of(whole, protocol), pruned.rows, max_shard_size)


class _Pruned:
    """The tensors of a checkpoint as a plan leaves them, made when they are asked for."""

    def __init__(
        self, weights: Arranged, plan: Plan, progress: Progress | None, repaired: Mapping[str, torch.Tensor]
    ) -> None:
        self._weights, self._plan, self._progress, self._repaired = weights, plan, progress, repaired
        self._cuts: dict[str, ParameterCut] = {}
        self._rescales: dict[str, list[Rescale]] = {}
        self._origins = _origins(plan, weights.tensors)
        self._match()
        kept = plan.kept
        self.tensors: dict[str, Stored] = {}
        for name, origin in self._origins.items():
            stored, cut = weights.tensors[origin], self._cuts.get(origin)
            shape = tuple(layouts.new_size(dim, kept) for dim in cut.dims) if cut else stored.shape
            self.tensors[name] = Stored(stored.dtype, shape)
        read = [weights.tensors[origin] for origin in self._origins.values()]
        self._total = sum(stored.bytes for stored in read)
        self._done = 0
        largest = max((s.row_bytes * (b - a) for s in read for a, b in s.pieces()[:1]), default=0)
        # memory that is used again and again: what the system gives has to be cleared first
        self._room = torch.empty(largest, dtype=torch.uint8, device="cpu")
        self._other = torch.empty_like(self._room)

    def _match(self) -> None:
        """Finds the tensor of every entry of the plan."""
        tensors, problems = self._weights.tensors, []
        names: dict[str, list[str]] = {}
        for cut in self._plan.parameters:
            names[cut.parameter] = found = [name for name in (cut.parameter, *cut.aliases) if name in tensors]
            if not found and cut.persistent:
                problems.append(f"{cut.parameter} is missing")
            problems += [
                f"{name} has shape {tensors[name].shape}, the plan was made for {cut.shape}"
                for name in found
                if tensors[name].shape != cut.shape
            ]
            self._cuts.update(dict.fromkeys(found, cut))
        for rescale in self._plan.rescales:
            for name in names.get(rescale.parameter) or [rescale.parameter]:
                problem = _not_scalable(name, rescale, tensors)
                problems += [problem] if problem else []
                self._rescales.setdefault(name, []).append(rescale)
        if self._plan.gone and not any(name in tensors for name in self._removed()):
            problems.append(f"{self._plan.gone[0]} is missing")
        witnesses = [deletion.witness for deletion in self._plan.entries.deletions]
        problems += [f"{name} is missing" for name in witnesses if name and name not in tensors]
        staying = set(self._origins.values())
        problems += [f"{name} is missing" for name in self._repaired if name not in staying]
        if problems:
            why = "; ".join(problems[:4])
            raise CheckpointError("The checkpoint is for another model.", where=str(self._weights.path), why=why)

    def _removed(self) -> Iterator[str]:
        """Yields all names of the tensors that go."""
        yield from self._plan.gone
        for tied in self._plan.tied:
            yield from () if tied.name else tied.names

    def _repaired_values(self, name: str) -> torch.Tensor:
        """Returns the values that were given for a tensor."""
        values, wanted = self._repaired[self._origins[name]], self.tensors[name]
        if tuple(values.shape) != wanted.shape:
            raise CheckpointError(
                "Repaired values don't fit the plan.",
                where=name,
                why=f"they have shape {tuple(values.shape)}, the plan leaves {wanted.shape}",
                hint="pass plan and repaired of the same result",
            )
        return values.to(wanted.dtype)

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """Yields a tensor in runs along its dim 0; a run is there until the next one is asked for."""
        origin = self._origins[name]
        stored, cut = self._weights.tensors[origin], self._cuts.get(origin)
        if origin in self._repaired:
            yield self._repaired_values(name)
            self._tell(stored.bytes)
            return
        positions = self._plan.positions(cut) if cut else {}
        for start, stop in stored.pieces():
            piece = self._weights.read(origin, (start, stop), self._room)
            for rescale in self._rescales.get(origin, ()):
                scale_rows(piece, _within(rescale.rows, start, stop), rescale.factor)
            yield self._selected(piece, positions, start, stop) if positions else piece
            self._tell(piece.nbytes)

    def _tell(self, read: int) -> None:
        self._done += read
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _selected(
        self, piece: torch.Tensor, positions: Mapping[int, torch.Tensor], start: int, stop: int
    ) -> torch.Tensor:
        """Selects what stays of the rows from ``start`` to ``stop`` of a tensor."""
        chosen = dict(positions)
        if 0 in chosen:
            rows = chosen[0]
            chosen[0] = rows[(rows >= start) & (rows < stop)] - start
        # whole numbers of the same width: some dtypes can't be indexed
        bits = piece.view(_BITS[piece.dtype.itemsize])
        last = bits.dim() - 1
        room, other = self._room, self._other
        for dim in sorted(chosen):
            kept = chosen[dim]
            shape = (*bits.shape[:dim], len(kept), *bits.shape[dim + 1 :])
            out = room_for(other, bits.dtype, shape)
            if 0 < dim == last:  # several times faster than index_select along the last dim
                torch.gather(bits, dim, kept.expand(shape), out=out)
            else:
                torch.index_select(bits, dim, kept, out=out)
            bits, room, other = out, other, room
        return bits.view(piece.dtype)


def _named(plan: Plan, repaired: Collection[str]) -> set[str]:
    """Returns the names of tensors that a plan, and values that go with it, speak of."""
    names = {*repaired, *plan.gone, *(rescale.parameter for rescale in plan.rescales)}
    for cut in plan.parameters:
        names |= {cut.parameter, *cut.aliases}
    for tied in plan.tied:
        names.update(tied.names)
    return names | {deletion.witness for deletion in plan.entries.deletions if deletion.witness}


def _origins(plan: Plan, names: Collection[str]) -> dict[str, str]:
    """Finds what is written: name in the pruned model to name in the checkpoint, in the checkpoint's order."""
    renaming, there = plan.renaming, set(names)
    moved: dict[str, str] = {}
    for tied in plan.tied:
        held = [name for name in tied.names if name in there]
        if held and tied.name and all(renaming.place(name) is None for name in held):
            moved[held[0]] = tied.name
    places = {name: moved.get(name, renaming.place(name)) for name in names}
    return {place: name for name, place in places.items() if place is not None}


def _within(runs: tuple[tuple[int, int], ...], start: int, stop: int) -> list[tuple[int, int]]:
    parts = ((max(first, start) - start, min(last, stop) - start) for first, last in runs)
    return [(first, last) for first, last in parts if first < last]


def _not_scalable(name: str, rescale: Rescale, tensors: Mapping[str, Stored]) -> str:
    """Says why rows of a tensor can't be scaled; empty when they can."""
    stored = tensors.get(name)
    if stored is None:
        return f"{name} is missing"
    if not stored.dtype.is_floating_point or not stored.shape:
        return f"{name} has no rows of real numbers to scale"
    if any(not 0 <= start < stop <= stored.shape[0] for start, stop in rescale.rows):
        return f"{name} doesn't have the rows to scale"
    return ""

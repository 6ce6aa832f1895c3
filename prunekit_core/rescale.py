"""Constants that follow a size: keeping an attention's temperature when its head dim shrinks.

``softmax(q k^T / sqrt(D))`` computes its scale from the size of an axis. When the axis shrinks to ``D'`` the scale
becomes ``1 / sqrt(D')``; the rows of the parameter that make ``q`` are multiplied by ``sqrt(D' / D)`` to make up for
it. Which rows these are is found by walking back from ``q`` through operations that only move or combine elements
linearly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording
from prunekit_core.edits import Rescale, runs_of
from prunekit_core.ladder import Rehearsed
from prunekit_core.trace import Operation, TensorRef, tensor_refs

_MOVES = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "swapaxes",
        "swapdims",
        "t",
        "mT",
        "select",
        "slice",
        "narrow",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
        "alias",
        "_to_copy",
        "to",
        "expand",
        "detach",
        "dropout",
    ]
)
_LINEAR = frozenset(["neg", "add", "sub", "cat", "mul", "div", "rsub", "dropout"])
_SCALES = frozenset(["mul", "div"])


class _UnresolvedError(Exception):
    """The rows can't be found; the message says why."""


def find_rescales(analysis: Analysis, rehearsed: Rehearsed) -> tuple[tuple[Rescale, ...], tuple[str, ...]]:
    """Finds the rows to scale for every constant that follows a size that shrinks.

    Returns:
        The rescales, and a note for each constant that could not be made up for.
    """
    found: dict[tuple[str, tuple[tuple[int, int], ...]], Rescale] = {}
    notes: dict[str, None] = {}
    for position, recording in enumerate(analysis.recordings):
        changes = list(_changes(recording, position, rehearsed)) if recording.replayed else []
        walk = _Walk(recording) if changes else None
        for index, ref, factor in changes:
            assert walk is not None
            operation = recording.trace.operations[index]
            try:
                for parameter, rows in walk.rows(ref, index).items():
                    runs = runs_of(sorted(rows))
                    found.setdefault((parameter, runs), Rescale(parameter, runs, factor))
            except _UnresolvedError as why:
                site = f"{operation.name} in {operation.module or 'the model'}"
                notes[f"a constant of {site} follows a size and changes by a factor of {1 / factor:.4g}: {why}"] = None
    return tuple(found.values()), tuple(notes)


def _changes(recording: Recording, position: int, rehearsed: Rehearsed) -> Iterable[tuple[int, TensorRef, float]]:
    """Yields (operation, tensor to scale, factor) for default scales and for drifted factors."""
    for index, (temperature, axis) in recording.temperatures.items():
        size = layouts.new_size(axis, rehearsed.kept)
        if size != axis.size:
            source = recording.trace.operations[index].arguments[temperature.scaled]
            yield index, source, math.sqrt(size / axis.size)
    for drift in rehearsed.drifts:
        if drift.recording != position:
            continue
        operation = recording.trace.operations[drift.operation]
        source = next(tensor_refs(list(operation.arguments.values())), None)
        if source is not None and drift.old and drift.new:
            factor = drift.old / drift.new
            yield drift.operation, source, 1 / factor if _short(operation) == "div" else factor


def _short(operation: Operation) -> str:
    return operation.name.split("::")[1].split(".")[0].rstrip("_")


class _Walk:
    """Walks back from a tensor to the parameter rows that make it."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._names = {ref.index: name for name, ref in recording.trace.parameters.items()}
        self._makers: dict[int, Operation] = {}
        self._users: dict[int, list[Operation]] = {}
        for operation in recording.trace.operations:
            for ref in operation.outputs:
                self._makers.setdefault(ref.index, operation)
            for ref in tensor_refs(list(operation.arguments.values())):
                self._users.setdefault(ref.index, []).append(operation)
        self._found: dict[str, set[int]] = {}
        self._scaled: list[tuple[TensorRef, torch.Tensor]] = []
        self._passed: set[tuple[int, int]] = set()

    def rows(self, ref: TensorRef, user: int) -> dict[str, set[int]]:
        """Returns, per parameter, the rows that scale the tensor when they are scaled.

        Raises:
            _UnresolvedError: The tensor is made otherwise, or something else would be scaled along.
        """
        operation = self._recording.trace.operations[user]
        if _short(operation) not in {*_SCALES, "scaled_dot_product_attention"}:
            raise _UnresolvedError("it is no plain factor")
        self._found, self._scaled = {}, []
        self._passed = {(operation.index, output.index) for output in operation.outputs}
        shape = self._recording.trace.shapes[ref.index]
        self._back(ref, torch.ones(shape, dtype=torch.bool))
        for scaled, wanted in self._scaled:
            self._check_private(scaled, wanted)
        return self._found

    def _back(self, ref: TensorRef, wanted: torch.Tensor) -> None:
        maker = self._makers.get(ref.index)
        if maker is None:
            raise _UnresolvedError("its operand is made by no operation")
        self._scaled.append((ref, wanted))
        self._passed.add((maker.index, ref.index))
        name = _short(maker)
        if name in ("linear", "conv1d", "conv2d", "conv3d", "addmm"):
            self._reach_layer(maker, wanted)
        elif name in ("rms_norm", "layer_norm") and isinstance(maker.arguments.get("weight"), TensorRef):
            self._reach_parameters(maker, wanted, wanted.dim() - 1)
        elif name in _MOVES:
            source = next(tensor_refs(list(maker.arguments.values())))
            self._back(source, self._moved(maker, source, ref, wanted))
        elif name in _LINEAR:
            self._back_linear(maker, name, wanted)
        else:
            raise _UnresolvedError(f"its operand comes from {maker.name}")

    def _back_linear(self, maker: Operation, name: str, wanted: torch.Tensor) -> None:
        sources = list(tensor_refs(list(maker.arguments.values())))
        shapes = self._recording.trace.shapes
        if name == "cat":
            dim = maker.arguments["dim"]
            parts = wanted.split([shapes[source.index][dim] for source in sources], dim)
            for source, part in zip(sources, parts, strict=True):
                self._back(source, part)
            return
        made = [s for s in sources if self._from_layer(s)]
        if name in _SCALES:
            if len(made) != 1:
                raise _UnresolvedError(f"{maker.name} combines several activations")
        elif len(made) != len(sources) or (len(sources) != 2 and name != "neg"):
            raise _UnresolvedError(f"{maker.name} adds something that is not scaled")
        for source in dict.fromkeys(made):
            if shapes[source.index] != tuple(wanted.shape):
                raise _UnresolvedError(f"{maker.name} broadcasts")
            self._back(source, wanted)

    def _from_layer(self, ref: TensorRef) -> bool:
        """Tells whether a tensor depends on a layer's output (and not on constants only)."""
        pending, seen = [ref], set[int]()
        while pending:
            current = pending.pop()
            if current.index in seen:
                continue
            seen.add(current.index)
            maker = self._makers.get(current.index)
            if maker is not None:
                if _short(maker) in (
                    "linear",
                    "conv1d",
                    "conv2d",
                    "conv3d",
                    "addmm",
                    "matmul",
                    "layer_norm",
                    "rms_norm",
                ):
                    return True
                pending.extend(tensor_refs(list(maker.arguments.values())))
        return False

    def _check_private(self, ref: TensorRef, wanted: torch.Tensor) -> None:
        """Makes sure that whatever reads the elements that will be scaled was passed on the way back."""
        for reader in self._users.get(ref.index, []):
            for output in reader.outputs:
                if (reader.index, output.index) in self._passed:
                    continue
                moves = _short(reader) in _MOVES
                if moves and not self._users.get(output.index):
                    continue
                if not moves or (self._moved(reader, ref, output, None) & wanted).any():
                    raise _UnresolvedError(f"{reader.name} reads the same elements")

    def _moved(
        self, mover: Operation, source: TensorRef, output: TensorRef, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns which elements of a mover's input are read by (the wanted part of) one of its outputs."""
        shape = self._recording.trace.shapes[source.index]
        labels = torch.arange(math.prod(shape)).reshape(shape)
        arguments = {name: labels if value == source else value for name, value in mover.arguments.items()}
        result = mover.op(**_plain(mover, arguments))
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        moved = results[list(mover.outputs).index(output)]
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[moved.reshape(-1) if wanted is None else moved[wanted]] = True
        return mask.reshape(shape)

    def _reach_layer(self, maker: Operation, wanted: torch.Tensor) -> None:
        channel = 1 if _short(maker).startswith("conv") else wanted.dim() - 1
        if _short(maker) == "addmm":
            raise _UnresolvedError("its rows are columns of a matrix product")
        self._reach_parameters(maker, wanted, channel)

    def _reach_parameters(self, maker: Operation, wanted: torch.Tensor, channel: int) -> None:
        per_row = wanted.movedim(channel, 0).reshape(wanted.shape[channel], -1)
        chosen = per_row.any(1)
        if not per_row[chosen].all():
            raise _UnresolvedError("part of a row would be scaled")
        for argument in ("weight", "bias"):
            ref = maker.arguments.get(argument)
            if isinstance(ref, TensorRef):
                self._take(ref, chosen, maker)

    def _take(self, ref: TensorRef, chosen: torch.Tensor, user: Operation) -> None:
        name = self._names.get(ref.index)
        if name is not None:
            if any(other is not user and other.outputs for other in self._users.get(ref.index, [])):
                raise _UnresolvedError(f"{name} is used elsewhere, too")
            self._found.setdefault(name, set()).update(chosen.nonzero().flatten().tolist())
            return
        maker = self._makers.get(ref.index)
        if maker is None or _short(maker) not in _MOVES:
            raise _UnresolvedError("its weight is computed")
        shape = self._recording.trace.shapes[ref.index]
        wanted = chosen.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        source = next(tensor_refs(list(maker.arguments.values())))
        mask = self._moved(maker, source, ref, wanted)
        rows = mask.reshape(mask.shape[0], -1)
        if not rows[rows.any(1)].all():
            raise _UnresolvedError("part of a row would be scaled")
        self._take(source, rows.any(1), maker)


def _plain(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    known = {argument.name for argument in operation.op._schema.arguments}
    return {name: value for name, value in arguments.items() if name in known and name not in _DTYPES}


_DTYPES = frozenset({"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"})

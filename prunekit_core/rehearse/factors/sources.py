"""Where a tensor comes from: the rows of parameters that scale it when they are scaled.

They are found by walking back through operations; the op rules say how these scale (`Scaling`). A walk doesn't look at
what else its rows would scale: that shows when they are tried (`Deviations`).

Example: attention divides by a constant ``sqrt(64)``, and after a cut to 32 dims per head the queries should come out
multiplied by ``sqrt(32 / 64)`` to make up for it. What is wanted of the queries, a factor for all their elements, is
handed back from operation to operation: through ``transpose`` and ``view`` to the same elements of what they read, at a
sum to every summand, at a product to one factor (there is a choice), up to ``linear(x, W_q, b_q)``. There it becomes
rows: all of ``W_q`` and ``b_q`` times ``sqrt(0.5)``.

Factors are handled as logarithms: a product of tensors adds them, a quotient subtracts, a root halves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch

from prunekit_core.groups.recording import Recording
from prunekit_core.program.rules import RuleTable, scaling_of
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef, is_continuous
from prunekit_core.rehearse.factors.deviations import Deviations
from prunekit_core.rehearse.factors.factor import CLOSE, Logs, slim
from prunekit_core.rehearse.factors.rules import counts_as_tensor, plain_arguments
from prunekit_core.rehearse.factors.versions import Version

Rows = dict[str, dict[int, float]]
"""By parameter: rows with the logarithms of the factors by which they have to be scaled."""


class UnresolvedError(Exception):
    """The rows can't be found; the message says why."""


class Origins:
    """Finds the rows that make tensors of one recorded program.

    Args:
        recording: The recorded program.
        rules: The op rules, which say how operations scale.
        deviations: How its tensors differ.
        scalable: Names of the parameters whose rows may be scaled.
    """

    def __init__(
        self, recording: Recording, rules: RuleTable, deviations: Deviations, scalable: Collection[str]
    ) -> None:
        self.recording, self.rules, self.scalable = recording, rules, scalable
        self.flow, self.vanishes, self.degree = deviations.flow, deviations.vanishes, deviations.transfer.degree
        self.names = {ref.index: name for name, ref in recording.trace.parameters.items()}
        self._moved: dict[Hashable, torch.Tensor] = {}
        self._found: dict[Hashable, tuple[Rows, int] | str] = {}

    def find(
        self, wants: Sequence[tuple[TensorRef, Logs]], reader: int, choices: Sequence[int], otherwise: int
    ) -> tuple[Rows, int]:
        """Finds rows that scale some tensors.

        Args:
            wants: The tensors, with the logarithms of the factors for their elements.
            reader: Index of the operation that reads them.
            choices: Which operand is scaled at the first products on the way: 0 the first, 1 the second, 2 both alike.
            otherwise: The choice at all further ones.

        Returns:
            The rows, and at how many products there was a choice.

        Raises:
            UnresolvedError: The tensors are made otherwise.
        """
        if any(isinstance(logs, torch.Tensor) for _, logs in wants):
            walk = _Walk(self, choices, otherwise)
            return walk.run(wants, reader), walk.chosen
        key = (reader, tuple(wants), tuple(choices), otherwise)  # the search repeats the same walk at every depth
        if key not in self._found:
            walk = _Walk(self, choices, otherwise)
            try:
                self._found[key] = (walk.run(wants, reader), walk.chosen)
            except UnresolvedError as error:
                self._found[key] = str(error)
        found = self._found[key]
        if isinstance(found, str):
            raise UnresolvedError(found)
        return found

    def shape(self, ref: TensorRef | int) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self.recording.trace.shapes[ref if isinstance(ref, int) else ref.index]

    def reaches_parameter(self, version: Version) -> bool:
        """Tells whether a tensor is a parameter, or computed from one."""
        pending, seen = [version], set[Version]()
        while pending:
            current = pending.pop()
            maker = self.flow.maker(current)
            if maker is None and self.names.get(current[0]) in self.scalable:
                return True
            if maker is not None and current not in seen:
                seen.add(current)
                pending.extend(self.flow.version(maker.index, ref) for ref in maker.references())
        return False

    def moved(self, mover: Operation, source: TensorRef, output: TensorRef, wanted: torch.Tensor) -> torch.Tensor:
        """Returns which elements of a mover's input are read by the wanted part of one of its outputs.

        Any operation that only moves elements (``view``, ``cat``, ``index``) is understood by running it on positions:
        the input holds ``0, 1, 2, ...``, all other tensors hold -1, and what comes out at the wanted places names the
        elements that were read.

        Args:
            mover: The operation.
            source: The input.
            output: The output.
            wanted: Mask of the output's shape.

        Returns:
            Mask of the input's shape, on the CPU.
        """
        shape = self.shape(source)
        if "dtype" in mover.arguments and self.shape(output) == shape:
            return wanted  # a conversion
        whole = all_of(wanted)
        key = self._form(mover, source, output) if whole else None  # blocks of a model move their tensors alike
        if key in self._moved:
            return self._moved[key]
        others = {ref.index for ref in mover.references()} - {source.index}
        inputs = {index: torch.full((), -1, device="cpu").expand(self.shape(index)) for index in others}
        inputs[source.index] = torch.arange(math.prod(shape), device="cpu").reshape(shape)
        result = mover.op(**plain_arguments(mover, inputs))
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        positions = results[list(mover.outputs).index(output)]
        read = positions.reshape(-1) if whole else positions[wanted]
        mask = torch.zeros(math.prod(shape), dtype=torch.bool, device="cpu")
        mask[read if len(inputs) == 1 else read[read >= 0]] = True
        all_read = read.numel() >= mask.numel() and bool(mask.all())
        mask = _everything(shape) if all_read else mask.reshape(shape)
        if key is not None:
            self._moved[key] = mask
        return mask

    def _form(self, mover: Operation, source: TensorRef, output: TensorRef) -> Hashable:
        """Returns what the result of `moved` for all of the output depends on: shapes and plain arguments."""

        def form(value: Any) -> Hashable:
            if isinstance(value, TensorRef):
                return (value == source, self.shape(value))
            return tuple(map(form, value)) if isinstance(value, list) else value

        arguments = tuple((name, form(value)) for name, value in mover.arguments.items())
        return (mover.name, list(mover.outputs).index(output), arguments)


class _Walk:
    """One walk back, from the last tensor to the first.

    ``_pending`` holds what is still wanted: a tensor (in one version) and a factor, with the mask of its elements. The
    latest tensor is taken next, so that all its readers have been there: where two paths meet (queries and keys of one
    packed projection), their masks are joined, and the tensor is gone through once.
    """

    def __init__(self, origins: Origins, choices: Sequence[int], otherwise: int) -> None:
        self._origins, self._flow, self._rules = origins, origins.flow, origins.rules
        self._choices, self._otherwise = choices, otherwise
        self._rows: Rows = {}
        self._pending: dict[tuple[Version, float], tuple[float, torch.Tensor]] = {}
        self.chosen = 0

    def run(self, wants: Sequence[tuple[TensorRef, Logs]], reader: int) -> Rows:
        for ref, logs in wants:
            version = self._flow.version(reader, ref) if reader < self._flow.end else self._flow.result(ref)
            if not isinstance(logs, torch.Tensor):
                self._reach(version, logs, _everything(self._origins.shape(ref)))
                continue
            found = slim(logs).unique().tolist()  # a walk has one factor: elements are sorted by theirs
            for value in {round(value, 9): value for value in found if abs(value) > CLOSE}.values():
                self._reach(version, value, ((slim(logs) - value).abs() <= CLOSE).expand(logs.shape))
        while self._pending:
            latest = max(self._pending, key=lambda key: key[0][1])
            self._back(latest[0], *self._pending.pop(latest))
        return self._rows

    def _reach(self, version: Version, log: float, wanted: torch.Tensor) -> None:
        """Notes that elements of a tensor have to be scaled; joins them with those that are wanted already."""
        key = (version, round(log, 9))
        known = self._pending.get(key)
        if known is not None and not all_of(wanted):
            wanted = known[1] if all_of(known[1]) else known[1] | wanted
        self._pending[key] = (log, wanted)

    def _source(self, maker: Operation, ref: TensorRef, log: float, wanted: torch.Tensor | None = None) -> None:
        """Goes on to an operand; all of it where it isn't said which part."""
        part = _everything(self._origins.shape(ref)) if wanted is None else wanted
        self._reach(self._flow.version(maker.index, ref), log, part)

    def _back(self, version: Version, log: float, wanted: torch.Tensor) -> None:
        """Goes back from a tensor to the operands of what made it, as the rule of that operation scales."""
        maker = self._flow.maker(version)
        if maker is None:
            self._take(version[0], log, wanted)
            return
        how, refs = scaling_of(self._rules, maker.op), maker.references()
        if how in (Scaling.ROWS, Scaling.CHANNELS, Scaling.ALONG):
            self._layer(maker, how, log, wanted)
        elif how is Scaling.MOVED:
            output = next(ref for ref in maker.outputs if ref.index == version[0])
            for source in dict.fromkeys(refs):
                part = self._origins.moved(maker, source, output, wanted)
                if bool(slim(part).any()):
                    self._source(maker, source, log, part)
        elif how in (Scaling.SUM, Scaling.WRITTEN):
            self._sum(maker, log, wanted if how is Scaling.SUM else None)
        elif how in (Scaling.PRODUCT, Scaling.QUOTIENT):
            self._product(maker, how, log, wanted)
        elif how is Scaling.POWER:
            self._power(maker, log, wanted)
        elif how is Scaling.MATRIX and not all_of(wanted) and self._is_constant(maker, refs[1]):
            self._columns(maker, refs[1], log, wanted)
        elif how is Scaling.ADDED_MATRIX:
            self._added_matrix(maker, log, wanted)
        elif how in (Scaling.WHOLE, Scaling.REDUCED, Scaling.CONSTANT, Scaling.MATRIX, Scaling.MULTILINEAR):
            if not all_of(wanted):
                raise UnresolvedError(f"part of what {maker.name} makes would be scaled")
            if how in (Scaling.MATRIX, Scaling.MULTILINEAR) and len(refs) > 1:
                self._choose(maker, [(ref, 1.0) for ref in refs], log)
            else:
                self._source(maker, refs[2 if how is Scaling.CONSTANT else 0], log)
        else:
            raise UnresolvedError(f"its operand comes from {maker.name}")

    def _is_constant(self, maker: Operation, ref: TensorRef) -> bool:
        """Whether an operand is a parameter, perhaps transposed, and not computed by a layer."""
        return not self._flow.is_made(self._flow.version(maker.index, ref), self._rules)

    def _choose(
        self,
        maker: Operation,
        operands: Sequence[tuple[TensorRef, float]],
        log: float,
        wanted: torch.Tensor | None = None,
    ) -> None:
        """Scales one operand of a product, or both.

        Args:
            maker: The product.
            operands: What may be scaled, in order of preference, each with the power at which it enters the product.
            log: The factor for the product.
            wanted: The part of an operand of the product's shape; None for all of it.
        """
        choice = 0
        if len(operands) > 1:
            choice = self._choices[self.chosen] if self.chosen < len(self._choices) else self._otherwise
            self.chosen += 1
        picked = operands if choice == 2 else operands[choice : choice + 1] or operands[:1]
        for ref, power in picked:
            self._source(maker, ref, log * power / len(picked), self._part(ref, wanted))

    def _part(self, ref: TensorRef, wanted: torch.Tensor | None) -> torch.Tensor | None:
        """Which elements of an operand that broadcasts are wanted: those that a wanted element of the result reads.

        A mask ``[8, 4]`` becomes ``[4]`` for an operand of shape ``[4]``, and ``[8, 1]`` for one of shape ``[8, 1]``.
        None (all of it) where the shapes don't match so.
        """
        if wanted is None or all_of(wanted):
            return None
        shape = self._origins.shape(ref)
        part = wanted.flatten(0, wanted.dim() - len(shape) - 1).any(0) if wanted.dim() > len(shape) > 0 else wanted
        for dim, size in enumerate(shape):
            if size == 1 and part.shape[dim] != 1:
                part = part.any(dim, keepdim=True)
        return part if part.shape == torch.Size(shape) else None

    def _product(self, maker: Operation, how: Scaling, log: float, wanted: torch.Tensor) -> None:
        """Scales one operand of a product or quotient: what a layer makes first, then what comes from a parameter."""
        read = maker.references()
        refs = tuple(dict.fromkeys(read))
        powers = [1.0 / read.count(ref) for ref in refs]  # x * x: each x takes the root
        if how is Scaling.QUOTIENT:
            powers[1:] = [-1.0] * len(powers[1:])
        made: list[tuple[TensorRef, float]] = []
        parameters: list[tuple[TensorRef, float]] = []
        for ref, power in zip(refs, powers, strict=True):
            version = self._flow.version(maker.index, ref)
            if self._flow.is_made(version, self._rules):
                made.append((ref, power))
            elif self._origins.reaches_parameter(version):
                parameters.append((ref, power))
        if not made and not parameters:
            raise UnresolvedError(f"its operand comes from {maker.name}")
        self._choose(maker, [*made, *parameters], log, wanted)

    def _sum(self, maker: Operation, log: float, wanted: torch.Tensor | None) -> None:
        """Scales all summands (but for zeros, and masks that are added: those stay what they are)."""
        dtypes = self._origins.recording.trace.dtypes
        if any(counts_as_tensor(name, value) for name, value in maker.arguments.items()):
            raise UnresolvedError(f"{maker.name} adds something that is not scaled")
        for ref in dict.fromkeys(maker.references()):
            version = self._flow.version(maker.index, ref)
            if is_continuous(dtypes[ref.index]) and not self._origins.vanishes(maker, ref):
                if not self._flow.is_made(version, self._rules) and not self._origins.reaches_parameter(version):
                    raise UnresolvedError(f"{maker.name} adds something that is not scaled")
                self._source(maker, ref, log, self._part(ref, wanted))

    def _power(self, maker: Operation, log: float, wanted: torch.Tensor) -> None:
        """Scales the operand of a power by the root of the factor."""
        degree = self._origins.degree(maker)
        if not degree:
            raise UnresolvedError(f"its operand comes from {maker.name}")
        self._source(maker, maker.references()[0], log / degree, wanted)

    def _added_matrix(self, maker: Operation, log: float, wanted: torch.Tensor) -> None:
        """``addmm(b, x, W.T)``: scales what is added, and one factor of the product."""
        added, left, right = maker.references()[:3]
        if maker.arguments.get("beta") != 0 and not self._origins.vanishes(maker, added):
            self._source(maker, added, log, self._part(added, wanted))
        if self._is_constant(maker, right):
            self._columns(maker, right, log, wanted)
        elif not all_of(wanted):
            raise UnresolvedError(f"part of what {maker.name} makes would be scaled")
        else:
            self._choose(maker, [(left, 1.0), (right, 1.0)], log)

    def _columns(self, maker: Operation, weight: TensorRef, log: float, wanted: torch.Tensor) -> None:
        """``x @ W.T``: columns of the transposed parameter make columns of the result; they are wanted whole or not."""
        columns = wanted.reshape(-1, wanted.shape[-1])
        chosen = columns.any(0)
        if not columns[:, chosen].all():
            raise UnresolvedError("part of a row would be scaled")
        self._source(maker, weight, log, chosen.expand(self._origins.shape(weight)))

    def _layer(self, maker: Operation, how: Scaling, log: float, wanted: torch.Tensor) -> None:
        """Scales rows of a layer's weight and bias: the end of a path."""
        weight = maker.arguments.get("weight")
        if not isinstance(weight, TensorRef):
            raise UnresolvedError(f"its operand comes from {maker.name}")
        if all_of(wanted):
            for argument in ("weight", "bias"):
                if isinstance(maker.arguments.get(argument), TensorRef):
                    self._source(maker, maker.arguments[argument], log)
            return
        # owned: mask [places, *what the weight's rows make at one place]; a row is scaled at all places or at none
        shape = self._origins.shape(weight)
        if how is Scaling.ALONG:
            owned = wanted.reshape(-1, *shape)
        else:
            channel = 1 if how is Scaling.CHANNELS else wanted.dim() - 1 - max(0, len(shape) - 2)
            owned = wanted.movedim(channel, 0).reshape(wanted.shape[channel], -1).T
        chosen = owned.any(0)
        if not owned[:, chosen].all():
            raise UnresolvedError("part of a row would be scaled")
        for argument in ("weight", "bias"):
            ref = maker.arguments.get(argument)
            if isinstance(ref, TensorRef):
                own = self._origins.shape(ref)
                part = chosen if how is Scaling.ALONG else chosen.reshape(-1, *[1] * (len(own) - 1)).expand(own)
                self._source(maker, ref, log, part)

    def _take(self, index: int, log: float, wanted: torch.Tensor) -> None:
        """Adds rows of a parameter to what is found: the end of a path. What is wanted has to be whole rows."""
        name = self._origins.names.get(index)
        if name is None:
            raise UnresolvedError("its operand is made by no operation")
        if name not in self._origins.scalable or not wanted.dim():
            raise UnresolvedError(f"{name} has no rows that may be scaled")
        for dim in range(1, wanted.dim()):
            if wanted.stride(dim) == 0 and wanted.shape[dim] > 1:  # expanded: the same at every place
                wanted = wanted.narrow(dim, 0, 1)
        rows = wanted.reshape(wanted.shape[0], -1)
        if not rows[rows.any(1)].all():
            raise UnresolvedError("part of a row would be scaled")
        known = self._rows.setdefault(name, {})
        for row in rows.any(1).nonzero().flatten().tolist():
            if abs(known.setdefault(row, log) - log) > CLOSE:
                raise UnresolvedError("it is reached in two ways")


def _everything(shape: Sequence[int]) -> torch.Tensor:
    """A mask ``[shape]``, on the CPU, that is true everywhere: one element, expanded."""
    return torch.ones((), dtype=torch.bool, device="cpu").expand(tuple(shape))


def all_of(mask: torch.Tensor) -> bool:
    """Tells whether a mask is true everywhere, by what it has in memory."""
    return bool(slim(mask).all())

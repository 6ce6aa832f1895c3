"""Constants that follow a size: keeping an attention's temperature when its head dim shrinks.

``softmax(q k^T / sqrt(D))`` computes its scale from the size of an axis. When the axis shrinks to ``D'`` the scale
becomes ``1 / sqrt(D')``; the rows of the parameter that make ``q`` are multiplied by ``sqrt(D' / D)`` to make up for
it (`Origins` finds them). Where the queries can't be scaled, the keys may be; and where both are made by the same rows,
both take the square root of the factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

from prunekit_core import layout as layouts
from prunekit_core.analysis import Analysis, Recording
from prunekit_core.comparison import Drift, Unmet
from prunekit_core.edits import Rescale, runs_of
from prunekit_core.folding import Folding
from prunekit_core.ladder import Rehearsed
from prunekit_core.origins import Origin, Origins, UnresolvedError
from prunekit_core.rules import RuleTable, Scaling
from prunekit_core.trace import Operation, TensorRef


@attrs.frozen(eq=False)
class _Demand:
    """A constant that has changed.

    Attributes:
        operation: Where it meets activations.
        operand: The activations, which may be scaled to make up for it; None where they can't be told.
        factor: What they would have to be multiplied with.
        why: Why they can't be told.
    """

    operation: Operation
    operand: TensorRef | None
    factor: float
    why: str = "it is no plain factor"


def find_rescales(
    analysis: Analysis, rules: RuleTable, rehearsed: Rehearsed
) -> tuple[tuple[Rescale, ...], tuple[Unmet, ...]]:
    """Finds the rows to scale for every constant that follows a size that shrinks.

    Args:
        analysis: The analysed model.
        rules: The op rules, which say how operations scale.
        rehearsed: The cut.

    Returns:
        The rescales, and every constant that could not be made up for.
    """
    scaled: dict[str, dict[int, float]] = {}
    unmet: dict[Unmet, None] = {}
    for position, recording in enumerate(analysis.recordings):
        if not recording.replayed:
            continue
        drifts = [drift for drift in rehearsed.drifts if drift.recording == position]
        collected = _Collected(recording, rules, rehearsed, drifts)
        failed = list(collected.failed)
        if collected.demands:
            failed.extend(_Solver(recording, rules, collected.demands, scaled).solve())
        unmet.update((Unmet(position, op.index, _site(op), why), None) for op, why in failed)
    found = []
    for parameter, rows in scaled.items():
        for factor in dict.fromkeys(rows.values()):
            runs = runs_of(sorted(row for row, value in rows.items() if value == factor))
            found.append(Rescale(parameter, runs, factor))
    return tuple(found), tuple(unmet)


class _Collected:
    """The constants of one recording that have changed: default scales, numbers, and tensors made of numbers."""

    def __init__(self, recording: Recording, rules: RuleTable, rehearsed: Rehearsed, drifts: list[Drift]) -> None:
        self.demands: list[_Demand] = []
        self.failed: list[tuple[Operation, str]] = []
        self._recording, self._rules = recording, rules
        operations = recording.trace.operations
        for index, (temperature, axis) in recording.temperatures.items():
            size = layouts.new_size(axis, rehearsed.kept)
            if size != axis.size:
                operand = operations[index].arguments[temperature.scaled]
                self.demands.append(_Demand(operations[index], operand, math.sqrt(size / axis.size)))
        changes: dict[int, dict[str, float]] = {}
        for drift in drifts:
            kind = type(operations[drift.operation].arguments[drift.argument])
            changes.setdefault(drift.operation, {})[drift.argument] = kind(drift.new)
        folding = Folding(recording, changes)
        for drift in drifts:
            operation = operations[drift.operation]
            if not any(ref.index in folding.values for ref in operation.outputs):
                self._number(operation, drift)
        for operation, ref in folding.meetings():
            self._meeting(operation, ref, folding.ratio(ref))
        for ref in dict.fromkeys(recording.trace.results):
            if ref.index in folding.values and folding.ratio(ref) != 1:
                self.failed.append((folding.makers[ref.index], "follows a size, and is an output of the model"))

    def _number(self, operation: Operation, drift: Drift) -> None:
        source = next(iter(operation.references()), None)
        if source is None or not drift.old or not drift.new:
            self.failed.append((operation, f"follows a size: {drift.old:g} became {drift.new:g}"))
            return
        how = self._rules.scaling(operation.op)
        factor = drift.new / drift.old if how is Scaling.QUOTIENT else drift.old / drift.new
        plain = how in (Scaling.PRODUCT, Scaling.QUOTIENT, Scaling.CONSTANT)
        plain = plain or operation.index in self._recording.temperatures
        self.demands.append(_Demand(operation, source if plain else None, factor))

    def _meeting(self, operation: Operation, constant: TensorRef, ratio: float | None) -> None:
        if ratio is None:
            self.failed.append((operation, "follows a size: not by one factor"))
            return
        read, how = operation.references(), self._rules.scaling(operation.op)
        if ratio == 1:
            return
        others = [ref for ref in read if ref != constant]
        plain = len(others) == 1 and len(read) == 2 and (how is Scaling.PRODUCT or read[1] == constant)
        plain = plain and how in (Scaling.PRODUCT, Scaling.QUOTIENT)
        factor = ratio if how is Scaling.QUOTIENT else 1 / ratio
        self.demands.append(_Demand(operation, others[0] if plain else None, factor))


@attrs.frozen(eq=False)
class _Attempt:
    """One way to scale the result of a product: which tensors, read by whom, at which operands, to which power."""

    starts: tuple[TensorRef, ...]
    user: Operation
    operands: tuple[int, ...]
    power: float = 1.0


class _Solver:
    """Finds rows for the demands of one recording; one set of rows may answer several demands.

    Args:
        recording: The recorded program.
        rules: The op rules.
        demands: What has changed.
        scaled: Rows by parameter with their factors; what is found is added.
    """

    def __init__(
        self, recording: Recording, rules: RuleTable, demands: list[_Demand], scaled: dict[str, dict[int, float]]
    ) -> None:
        self._recording, self._rules, self._demands, self._scaled = recording, rules, demands, scaled
        self._origins = Origins(recording, rules)
        self._lifted = {id(demand): self._product_after(demand) for demand in demands}
        products = [self._lifted[id(demand)] or self._product_before(demand) for demand in demands]
        once = {p.index: d for p, d in zip(products, demands, strict=True) if p is not None and products.count(p) == 1}
        self._products = {id(demand): index for index, demand in once.items()}

    def solve(self) -> Iterator[tuple[Operation, str]]:
        """Yields the operation of each demand that could not be met, with the reason."""
        met = set[int]()
        for demand in self._demands:
            own = self._products.get(id(demand))
            if own in met:
                continue
            alike = {
                self._products[id(other)]
                for other in self._demands
                if other is not demand and id(other) in self._products and math.isclose(other.factor, demand.factor)
            }
            try:
                origin, power = self._origin(demand, alike - met)
                self._take(origin, demand.factor**power)
            except UnresolvedError as why:
                change = f"follows a size and changes by a factor of {1 / demand.factor:.4g}"
                yield demand.operation, f"{change}: {why}"
                continue
            met |= origin.products | ({own} if own is not None else set())

    def _origin(self, demand: _Demand, shared: set[int]) -> tuple[Origin, float]:
        if demand.operand is None:
            raise UnresolvedError(demand.why)
        first: UnresolvedError | None = None
        for attempt in self._attempts(demand, demand.operand):
            others = shared if attempt.power == 1 else set[int]()
            try:
                origin = self._origins.find(attempt.starts, attempt.user, attempt.operands, others)
                return origin, attempt.power
            except UnresolvedError as error:
                first = first or error
        assert first is not None
        raise first

    def _attempts(self, demand: _Demand, operand: TensorRef) -> Iterator[_Attempt]:
        product = self._lifted[id(demand)] if id(demand) in self._products else None
        if product is None:
            for operands, power in (((0,), 1.0), ((1,), 1.0), ((0, 1), 0.5)):
                yield _Attempt((operand,), demand.operation, operands, power)
            if self._rules.scaling(demand.operation.op) is not Scaling.CONSTANT:
                return
            product = demand.operation
        else:
            yield _Attempt((operand,), demand.operation, (0,))
        left, right = product.references()[:2]
        for starts, power in (((left,), 1.0), ((right,), 1.0), ((left, right), 0.5)):
            yield _Attempt(starts, product, (0,), power)

    def _take(self, origin: Origin, factor: float) -> None:
        for parameter, rows in origin.rows.items():
            known = self._scaled.get(parameter, {})
            if any(row in known and not math.isclose(known[row], factor) for row in rows):
                raise UnresolvedError(f"{parameter} is scaled otherwise for another constant")
        for parameter, rows in origin.rows.items():
            known = self._scaled.setdefault(parameter, {})
            known.update({row: factor for row in sorted(rows) if row not in known})

    def _product_after(self, demand: _Demand) -> Operation | None:
        """Follows the result of a demand's operation to the one matrix product that reads it."""
        plain = self._rules.scaling(demand.operation.op) in (Scaling.PRODUCT, Scaling.QUOTIENT)
        ref = demand.operation.outputs[0] if plain else None
        while ref is not None and ref not in self._recording.trace.results:
            readers = [op for op in self._origins.users.get(ref.index, []) if op.outputs and ref not in op.outputs]
            if len(readers) != 1:
                return None
            reader, how = readers[0], self._rules.scaling(readers[0].op)
            if how is Scaling.MATRIX and len(reader.references()) == 2 and reader.references().count(ref) == 1:
                return reader
            ref = reader.outputs[0] if how is Scaling.MOVED and len(reader.references()) == 1 else None
        return None

    def _product_before(self, demand: _Demand) -> Operation | None:
        """Follows what a demand may scale back to the matrix product that makes it and is read by nothing else."""
        plain = self._rules.scaling(demand.operation.op) in (Scaling.PRODUCT, Scaling.QUOTIENT)
        ref = demand.operand if plain else None
        while ref is not None and ref not in self._recording.trace.results:
            maker = self._origins.makers.get(ref.index)
            if maker is None or len(self._origins.users.get(ref.index, [])) != 1:
                return None
            how = self._rules.scaling(maker.op)
            if how is Scaling.MATRIX:
                return maker
            single = len(maker.outputs) == 1 and (how is Scaling.WHOLE or len(maker.references()) == 1)
            ref = maker.references()[0] if single and how in (Scaling.MOVED, Scaling.WHOLE) else None
        return None


def _site(operation: Operation) -> str:
    return f"{operation.name} in {operation.module or 'the model'}"

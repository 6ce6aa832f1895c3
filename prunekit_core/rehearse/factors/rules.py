"""How operations hand on the factors by which their operands differ; the op rules say what they do (`Scaling`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.algebra.layout import Kept, new_size
from prunekit_core.groups.recording import Recording
from prunekit_core.program.op_call import Verb
from prunekit_core.program.rules import RuleTable, scaling_of
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef, is_continuous, tensor_refs
from prunekit_core.rehearse.factors.factor import (
    PLAIN,
    Deviation,
    Logs,
    StuckError,
    alike_along,
    compact,
    exponent,
    full,
    plus,
    same,
)
from prunekit_core.torch_private.operators import arguments_of

Read = Sequence[Deviation]
"""The deviations of an operation's operands, in the order of `Operation.references`."""
Numbers = Mapping[str, float | None]
"""By argument: the logarithm of the factor by which a number has changed; None where that isn't one."""

Question = Callable[[Operation, TensorRef], bool]

NO_FACTOR = "it is no plain factor"


class Transfer:
    """Computes how the results of operations differ when their operands do.

    Args:
        recording: The recorded program.
        rules: The op rules.
        kept: Kept units per group.
        vanishes: Tells whether an operand of an operation holds nothing but zeros and infinities.
        contracts: Tells whether an operand of an operation is a product of two different activations.
        is_made: Tells whether an operand of an operation is an activation.
    """

    def __init__(
        self,
        recording: Recording,
        rules: RuleTable,
        kept: Kept,
        *,
        vanishes: Question,
        contracts: Question,
        is_made: Question,
    ) -> None:
        self._recording, self._rules, self._kept = recording, rules, kept
        self._vanishes, self._contracts, self._is_made = vanishes, contracts, is_made
        self._shapes = recording.trace.shapes
        self._degrees: dict[Any, float | None] = {}

    def results(self, operation: Operation, read: Read, numbers: Numbers) -> list[Deviation]:
        """Returns how the outputs of an operation differ.

        Args:
            operation: The operation.
            read: How its operands differ.
            numbers: Its numbers that have changed.

        Raises:
            StuckError: They don't differ by factors.
        """
        how = scaling_of(self._rules, operation.op)
        whole = self.summed(operation) is not None
        if not numbers and not whole and not any(item.differs or any(item.counts) for item in read):
            return [PLAIN] * len(operation.outputs)
        known = how is not None and operation.index not in self._recording.trace.decisions
        if not known or any(not is_continuous(self._recording.trace.dtypes[ref.index]) for ref in operation.outputs):
            return self._barrier(operation, read, numbers)
        rule = self._rules.find(operation.op)
        followed = rule.factors if rule is not None else ()
        if any(name not in followed or value is None for name, value in numbers.items()):
            raise StuckError(NO_FACTOR)
        sources = frozenset[int]().union(*(item.sources for item in read)) | ({operation.index} if numbers else set())
        found = self._logs(how, operation, read, {name: value or 0.0 for name, value in numbers.items()})
        counts = self._counts(how, operation, read)
        return [Deviation(logs, counts, sources) for logs in found]

    def summed(self, operation: Operation) -> tuple[float, float] | None:
        """Returns by which factors (see `Deviation.counts`) the number of units that are reduced over changes."""
        wholes = self._recording.wholes.get(operation.index)
        layouts = [use.layout for use in wholes.uses if use.verb in (Verb.MIX, Verb.SUM)] if wholes else []
        sizes = [(layout.size, new_size(layout, self._kept)) for layout in layouts]
        old, new = (math.prod(size) for size in zip(*sizes, strict=True)) if sizes else (1, 1)
        if old == new:
            return None
        return (math.log(new / old), math.log((new - 1) / (old - 1)) if new > 1 else 0.0)

    def _barrier(self, operation: Operation, read: Read, numbers: Numbers) -> list[Deviation]:
        if numbers:
            raise StuckError(NO_FACTOR)
        ways = [_plainly(read, [position]) for position, item in enumerate(read) if item.differs]
        if ways:
            raise StuckError(f"its operand comes from {operation.name}", [pair for way in ways for pair in way])
        return [PLAIN] * len(operation.outputs)

    def _logs(self, how: Scaling | None, operation: Operation, read: Read, numbers: Mapping[str, float]) -> list[Logs]:
        refs = operation.references()
        if how is Scaling.NUMBERS:
            return [sum(numbers.values())] * len(operation.outputs)
        if how is Scaling.MOVED:
            return self._moved(operation, [item.logs for item in read])
        if how in (Scaling.SUM, Scaling.WRITTEN):
            return [self._sum(operation, read, numbers)]
        shape = self._shapes[operation.outputs[0].index]
        logs: Logs = 0.0
        if how is Scaling.PRODUCT:
            for item in read:
                logs = plus(logs, item.logs, shape)
            return [plus(logs, numbers.get("other", 0.0), shape)] * len(operation.outputs)
        if how is Scaling.QUOTIENT:
            divisor = read[1].logs if len(read) > 1 else numbers.get("other", 0.0)
            return [plus(read[0].logs, -divisor, shape)]
        if how is Scaling.POWER:
            return [self._power(operation, read)]
        if how is Scaling.WHOLE:
            return self._whole(operation, read)
        if how is Scaling.ZEROS:
            return [0.0] * len(operation.outputs)
        if how is Scaling.REDUCED:
            return [self._reduced(operation, read)] * len(operation.outputs)
        if how is Scaling.MATRIX:
            return [self._matrix(read[:2], refs[:2], shape, 0)]
        if how is Scaling.MULTILINEAR:
            return [self._multilinear(operation, read)]
        if how is Scaling.ADDED_MATRIX:
            return [self._added_matrix(operation, read, numbers)]
        if how is Scaling.CONSTANT:
            return [self._attention(operation, read, numbers)]
        return self._rows(how, operation, read)

    def _moved(self, operation: Operation, read: Sequence[Logs]) -> list[Logs]:
        first = read[0] if read else 0.0
        if not isinstance(first, torch.Tensor) and all(same(item, first) for item in read):
            return [first] * len(operation.outputs)
        refs = operation.references()
        known = {ref.index: full(logs, self._shapes[ref.index]) for ref, logs in zip(refs, read, strict=True)}
        if "dtype" in operation.arguments and self._shapes[operation.outputs[0].index] == self._shapes[refs[0].index]:
            return [first]  # a conversion
        result = operation.op(**plain_arguments(operation, known))
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        return [compact(item) for item in results]

    def _sum(self, operation: Operation, read: Read, numbers: Mapping[str, float]) -> Logs:
        refs, shape = operation.references(), self._shapes[operation.outputs[0].index]
        operands = [k for k, ref in enumerate(refs) if is_continuous(self._recording.trace.dtypes[ref.index])]
        logs = {k: read[k].logs for k in operands if read[k].differs or not self._vanishes(operation, refs[k])}
        if "alpha" in numbers and len(operands) > 1 and operands[1] in logs:
            logs[operands[1]] = plus(logs[operands[1]], numbers["alpha"], self._shapes[refs[operands[1]].index])
        if not logs:
            return 0.0
        first, *others = logs.values()
        uniform = all(not isinstance(item, torch.Tensor) for item in logs.values())
        placed = scaling_of(self._rules, operation.op) is Scaling.SUM
        aligned = uniform or (placed and all(_broadcasts(self._shapes[refs[k].index], shape) for k in logs))
        number = any(counts_as_tensor(name, value) for name, value in operation.arguments.items())
        spread = [full(item, self._shapes[refs[k].index]) for k, item in logs.items()] if aligned else []
        alike = all(same(first, item) for item in others) if uniform else aligned and _alike(spread)
        if alike and not (number and any(not same(item, 0.0) for item in logs.values())):
            return first if uniform else compact(spread[0].expand(shape))
        why = f"{operation.name} adds something that is not scaled"
        raise StuckError(why, [(k, -item) for k, item in logs.items() if not same(item, 0.0)])

    def _power(self, operation: Operation, read: Read) -> Logs:
        degree = self.degree(operation)
        if degree is None or len(read) != 1:
            raise StuckError(f"its operand comes from {operation.name}", _plainly(read))
        return read[0].logs * degree

    def degree(self, operation: Operation) -> float | None:
        """To which power of a factor the result of an operation on one tensor follows, found by trying."""
        rest = {k: v for k, v in operation.arguments.items() if not isinstance(v, TensorRef)}
        key = (operation.op, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in rest.items()))
        ref = operation.references()[0]
        ndim = len(self._shapes[ref.index])
        if (key, ndim) not in self._degrees:
            probe = (torch.arange(2**ndim, dtype=torch.float64, device="cpu") + 1).reshape([2] * ndim)
            low, high = (operation.op(**plain_arguments(operation, {ref.index: x})) for x in (probe, 4 * probe))
            self._degrees[key, ndim] = exponent(high, low, 4.0) if isinstance(low, torch.Tensor) else None
        return self._degrees[key, ndim]

    def _whole(self, operation: Operation, read: Read) -> list[Logs]:
        bad = [k for k, item in enumerate(read) if item.differs and (k or isinstance(item.logs, torch.Tensor))]
        if bad:
            raise StuckError(f"part of what {operation.name} reads would be scaled", _plainly(read, bad))
        return [read[0].logs if read else 0.0] * len(operation.outputs)

    def _reduced(self, operation: Operation, read: Read) -> Logs:
        if not read[0].differs:
            return 0.0
        ndim, gone = len(self._shapes[operation.references()[0].index]), operation.arguments.get("dim")
        dims = [gone] if isinstance(gone, int) else list(gone or range(ndim))
        keep = len(self._shapes[operation.outputs[0].index]) == ndim
        logs = alike_along(read[0].logs, dims, keep)
        degree = self.degree(operation)
        if logs is None or degree is None or abs(degree - 1) > 1e-6:
            raise StuckError(f"{operation.name} combines what is scaled with what isn't", _plainly(read))
        return logs

    def _matrix(self, read: Read, refs: Sequence[TensorRef], shape: Sequence[int], offset: int) -> Logs:
        left, right = (item.logs for item in read)
        sizes = [self._shapes[ref.index] for ref in refs]
        if not isinstance(left, torch.Tensor) and not isinstance(right, torch.Tensor):
            return left + right
        ways: list[tuple[int, Logs]] = []
        if min(map(len, sizes)) > 1:
            rows, columns = alike_along(left, [-1], True), alike_along(right, [-2], True)
            if rows is not None and columns is not None:
                return plus(rows, columns, shape)
            ways = [(offset, -left)] if rows is None else [(offset + 1, -right)]
        ways = ways or [(offset + k, -item.logs) for k, item in enumerate(read) if item.differs]
        raise StuckError("it sums up what is scaled and what isn't", ways)

    def _multilinear(self, operation: Operation, read: Read) -> Logs:
        """Averages what each operand brings to an element; all that is summed there has to bring the same."""
        if not any(isinstance(item.logs, torch.Tensor) for item in read):
            return sum(float(item.logs) for item in read)
        refs, total = operation.references(), torch.zeros((), dtype=torch.float64, device="cpu")
        ones = {ref.index: full(1.0, self._shapes[ref.index]) for ref in refs}
        if len(ones) != len(refs):
            raise StuckError(f"{operation.name} reads it more than once", _plainly(read))
        terms = operation.op(**plain_arguments(operation, ones))
        for position, (ref, item) in enumerate(zip(refs, read, strict=True)):
            own = full(item.logs, self._shapes[ref.index])
            mean, square = (
                operation.op(**plain_arguments(operation, {**ones, ref.index: x})) / terms for x in (own, own * own)
            )
            if not bool(((square - mean * mean).abs() < 1e-9).all()):
                raise StuckError("it sums up what is scaled and what isn't", _plainly(read, [position]))
            total = total + mean
        return compact(total)

    def _added_matrix(self, operation: Operation, read: Read, numbers: Mapping[str, float]) -> Logs:
        refs, shape = operation.references(), self._shapes[operation.outputs[0].index]
        product = self._matrix(read[1:3], refs[1:3], shape, 1)
        product = plus(product, numbers.get("alpha", 0.0), shape)
        if operation.arguments.get("beta") == 0 or (not read[0].differs and self._vanishes(operation, refs[0])):
            return product
        added = plus(read[0].logs, numbers.get("beta", 0.0), self._shapes[refs[0].index])
        if same(compact(full(added, shape)), product):
            return product
        away: list[tuple[int, Logs]] = [] if same(added, 0.0) else [(0, -added)]
        why = f"{operation.name} adds something that is not scaled"
        raise StuckError(why, *([*away, *way] for way in _either(read[1:3], product, 1)))

    def _attention(self, operation: Operation, read: Read, numbers: Mapping[str, float]) -> Logs:
        refs = operation.references()
        scores = [item.logs for item in read[:2]]
        if any(isinstance(item, torch.Tensor) for item in scores):
            parts = [alike_along(item, [-1], True) for item in scores]
            bad = [k for k, item in enumerate(parts) if item is None or isinstance(item, torch.Tensor)]
            if bad:
                raise StuckError("part of what it multiplies would be scaled", _plainly(read, bad))
        total = sum(float(item) for item in scores if not isinstance(item, torch.Tensor)) + numbers.get("scale", 0.0)
        if not same(total, 0.0):
            raise StuckError(f"{operation.name} reads it more than once", *_either(read[:2], total, 0))
        if any(item.differs for item in read[3:]):
            raise StuckError(f"its operand comes from {operation.name}", _plainly(read, range(3, len(read))))
        values, shape = read[2].logs, self._shapes[operation.outputs[0].index]
        if not isinstance(values, torch.Tensor):
            return values
        along = alike_along(values, [-2], True)
        if along is None or self._shapes[refs[2].index][:-2] != shape[:-2]:
            raise StuckError("it sums up what is scaled and what isn't", _plainly(read, [2]))
        return plus(along, 0.0, shape)

    def _rows(self, how: Scaling | None, operation: Operation, read: Read) -> list[Logs]:
        """Layers with a weight and perhaps a bias."""
        refs, shape = operation.references(), self._shapes[operation.outputs[0].index]
        named = {name: ref for name, ref in operation.arguments.items() if isinstance(ref, TensorRef)}
        places = {name: refs.index(ref) for name, ref in named.items()}
        kernel = len(self._shapes[named["weight"].index]) - 2 if "weight" in named else 0
        behind = len(shape) - 2 if how is Scaling.CHANNELS else max(0, kernel)
        logs: dict[str, Logs] = dict.fromkeys(_LAYER, 0.0)
        for name, place in places.items():
            own = read[place].logs
            if read[place].differs:
                found = own if name in _LAYER else None
                if isinstance(own, torch.Tensor) and how is not Scaling.ALONG:
                    found = _per_row(own, behind) if name != "input" else None
                if found is None:
                    raise StuckError("part of a row would be scaled", _plainly(read, [place]))
                logs[name] = found
        source, weight, bias = logs.values()
        if not same(source, 0.0) and how is not Scaling.ROWS:
            raise StuckError(f"its operand comes from {operation.name}", _plainly(read, [places["input"]]))
        total = compact(source + weight)
        if "bias" in named and not same(total, bias):
            ways = _plainly(read, [places[name] for name in _LAYER if name in places])
            turned = [[(places["weight"], -source)]] if not same(source, 0.0) and same(weight, 0.0) else []
            raise StuckError(f"{operation.name} adds something that is not scaled", ways, *turned)
        return [full(total, shape) if isinstance(total, torch.Tensor) else total] + [0.0] * (len(operation.outputs) - 1)

    def _counts(self, how: Scaling | None, operation: Operation, read: Read) -> tuple[float, float]:
        first = read[0].counts if read else (0.0, 0.0)
        if how is Scaling.MOVED and any(item.counts != first for item in read):
            moved = [self._moved(operation, [item.counts[k] for item in read])[0] for k in (0, 1)]
            a, b = (0.0 if isinstance(item, torch.Tensor) else item for item in moved)
            return (a, b)
        if how in (Scaling.MOVED, Scaling.SUM):
            return first if all(item.counts == first for item in read) else (0.0, 0.0)
        if how is Scaling.WHOLE:
            return first
        if how in (Scaling.PRODUCT, Scaling.QUOTIENT):  # what is divided by a norm is no mean, but a direction
            made = [k for k, ref in enumerate(operation.references()) if self._is_made(operation, ref)]
            single = len(made) == 1 and (how is Scaling.PRODUCT or made == [0])
            return read[made[0]].counts if single else (0.0, 0.0)
        if how is Scaling.POWER:
            degree = self.degree(operation) or 0.0
            return (first[0] * degree, first[1] * degree)
        if how in (Scaling.REDUCED, Scaling.MULTILINEAR):
            summed = self.summed(operation)
            plain = summed and not self._contracts(operation, operation.references()[0])
            share = self._share(how, operation) if plain else 0.0
            own = (share * summed[0], share * summed[1]) if summed else (0.0, 0.0)
            inner = first if len(read) == 1 else (0.0, 0.0)
            return (own[0] + inner[0], own[1] + inner[1])
        return (0.0, 0.0)

    def _share(self, how: Scaling, operation: Operation) -> float:
        """To which power the number of units enters a reduction: 1 for sums, 1/2 for norms, 0 for means and maxima."""
        refs = operation.references()
        if how is Scaling.MULTILINEAR:
            return 1.0 if len(refs) == 1 else 0.0
        shape = self._shapes[refs[0].index]
        if len(refs) != 1:
            return 0.0
        small, large = (
            operation.op(**plain_arguments(operation, {refs[0].index: full(1.0, [size] * len(shape))}))
            for size in (1, 2)
        )
        gone = operation.arguments.get("dim")
        count = len(shape) if gone is None or gone == [] else len(gone) if isinstance(gone, list) else 1
        if not isinstance(small, torch.Tensor) or not small.numel():
            return 0.0
        power = exponent(large.flatten()[:1], small.flatten()[:1], 2.0**count)
        return power or 0.0


_LAYER = ("input", "weight", "bias")


def _plainly(read: Read, positions: Sequence[int] | None = None) -> list[tuple[int, Logs]]:
    """What would take all factors away from some operands."""
    chosen = range(len(read)) if positions is None else positions
    return [(k, -read[k].logs) for k in chosen if read[k].differs]


def _per_row(logs: torch.Tensor, behind: int) -> Logs | None:
    """The factors of the rows of a weight or bias, as they broadcast onto a result with dims behind its channels."""
    rows = alike_along(logs, range(1, logs.dim()), False)
    return rows.reshape(-1, *[1] * behind) if isinstance(rows, torch.Tensor) else rows


def _either(read: Read, total: Logs, offset: int) -> list[list[tuple[int, Logs]]]:
    """Takes a factor away from a product: from its first operand, its second, or both alike."""
    if isinstance(total, torch.Tensor):
        return [[(offset + k, -item.logs) for k, item in enumerate(read) if item.differs]]
    if same(total, 0.0):
        return [[]]
    return [[(offset, -total)], [(offset + 1, -total)], [(offset, -total / 2), (offset + 1, -total / 2)]]


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    short = len(target) >= len(shape)
    return short and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def _alike(tensors: Sequence[torch.Tensor]) -> bool:
    first, *others = torch.broadcast_tensors(*tensors)
    return all(same(first, other) for other in others)


def counts_as_tensor(name: str, value: Any) -> bool:
    """Whether an argument is a number that stands for elements and changes when it is multiplied."""
    number = name in ("self", "other", "value", "min", "max") and isinstance(value, int | float)
    return number and bool(value) and abs(value) < _LARGE


_LARGE = 1e30
"""Numbers beyond this (the least number of a dtype, in masks) stand for infinity."""


def plain_arguments(operation: Operation, known: Mapping[int, torch.Tensor]) -> dict[str, Any]:
    """Returns arguments for running an operation on other tensors, on the CPU, in their own dtype."""

    def exchanged(value: Any) -> Any:
        if isinstance(value, TensorRef):
            return known[value.index]
        if isinstance(value, list) and tensor_refs(value):
            return [exchanged(item) for item in value]
        return value

    names = {argument.name for argument in arguments_of(operation.op)} - _DTYPES
    return {name: exchanged(value) for name, value in operation.arguments.items() if name in names}


_DTYPES = frozenset({"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"})

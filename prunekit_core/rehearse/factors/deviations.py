"""How every tensor of a smaller program differs from what it was, when constants follow sizes and rows are scaled.

A constant that follows a size multiplies what it meets by a factor, and so does a row of a weight that is scaled. Both
are followed through the program, operation by operation, as logarithms of factors. Where they meet and cancel each
other, the smaller program computes what it did before; where an operation can't hand a factor on, it is stuck.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch

from prunekit_core.algebra.layout import Kept, new_size
from prunekit_core.groups.recording import Recording
from prunekit_core.program.rules import RuleTable, scaling_of
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef
from prunekit_core.rehearse.comparison import Drift
from prunekit_core.rehearse.factors.factor import PLAIN, Deviation, Logs, StuckError, plus, same
from prunekit_core.rehearse.factors.folding import Folding
from prunekit_core.rehearse.factors.rules import NO_FACTOR, Numbers, Transfer, plain_arguments
from prunekit_core.rehearse.factors.versions import Flow, Version


@attrs.frozen(eq=False)
class Stuck:
    """Where the smaller program computes something else.

    Attributes:
        why: What the operation can't do.
        read: How its operands differ.
        ways: See `StuckError`.
        sources: Operations whose constants are behind it.
    """

    why: str
    read: tuple[Logs, ...]
    ways: tuple[tuple[tuple[TensorRef, Logs], ...], ...]
    sources: frozenset[int]

    def same_as(self, other: Stuck | None) -> bool:
        """Tells whether the operation was stuck with the same operands before."""
        return other is not None and all(map(same, self.read, other.read))


class Deviations:
    """How the tensors of one recorded program differ; `scale` adds rows that are scaled, `rewind` takes them back.

    Args:
        recording: The recorded program.
        rules: The op rules, which say how operations scale.
        kept: Kept units per group.
        drifts: Numbers of this program that have changed.

    Attributes:
        flow: Who reads and writes what.
        stuck: By operation index: where the smaller program computes something else.
        transfer: How operations hand factors on.
        means: By operation index: the logarithm of the factor by which a sum over fewer units is divided by fewer.
    """

    def __init__(self, recording: Recording, rules: RuleTable, kept: Kept, drifts: Iterable[Drift]) -> None:
        self.flow = Flow(recording)
        self.stuck: dict[int, Stuck] = {}
        self.means: dict[int, float] = {}
        self._recording, self._rules, self._drifts = recording, rules, tuple(drifts)
        self.transfer = Transfer(
            recording, rules, kept, vanishes=self.vanishes, contracts=self._contracts, is_made=self.is_made
        )
        self._now: dict[Version, Deviation] = {}
        self._scaled = False
        self._products: dict[Version, bool] = {}
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._numbers: dict[int, dict[str, float | None]] = {}
        numbers = dict[int, dict[str, float]]()
        for drift in self._drifts:
            kind = type(self.flow.operations[drift.operation].arguments[drift.argument])
            numbers.setdefault(drift.operation, {})[drift.argument] = kind(drift.new)
            ratio = drift.new / drift.old if drift.old else 0.0
            self._numbers.setdefault(drift.operation, {})[drift.argument] = math.log(ratio) if ratio > 0 else None
        self._folding = Folding(recording, numbers)
        for index, (temperature, axis) in recording.temperatures.items():
            size = new_size(axis, kept)
            if size != axis.size:
                change = -math.log(size / axis.size) / 2
                self._numbers.setdefault(index, {})[temperature.argument] = change
        self._start()

    def _start(self) -> None:
        met = {operation.index for operation, _ in self._folding.meetings()}
        folded = {op.index for op in self.flow.operations if op.outputs and self._is_folded(op)}
        for index in folded:
            self._numbers.pop(index, None)
        if any(version[0] in self._folding.values for version in self.flow.results):
            met.add(self.flow.end)
        if met or self._numbers:
            sums = {index for index in self._recording.wholes if self.transfer.summed(self.flow.operations[index])}
            self._propagate(met | self._numbers.keys() | sums)

    def has_sums(self) -> bool:
        """Tells whether there is a sum over units that would be a mean if it were divided by their number."""
        operations = (self.flow.operations[index] for index in self._recording.wholes)
        found = (self.transfer.results(op, [PLAIN] * len(op.references()), {}) for op in operations)
        return any(any(deviation.counts) for results in found for deviation in results)

    def _is_folded(self, operation: Operation) -> bool:
        return all(ref.index in self._folding.values for ref in operation.outputs)

    def scale(self, rows: Mapping[str, Mapping[int, float]]) -> int:
        """Scales rows of parameters, further than they are.

        Args:
            rows: By parameter: rows with the logarithms of their factors.

        Returns:
            What `rewind` takes to go back to before.
        """
        mark, readers, self._scaled = len(self._undo), set[int](), True
        for name, factors in rows.items():
            ref = self._recording.trace.parameters.get(name)
            if ref is None:
                continue
            shape, version = self._recording.trace.shapes[ref.index], (ref.index, -1)
            logs = torch.zeros(shape[0], dtype=torch.float64, device="cpu")
            logs[list(factors)] = torch.tensor(list(factors.values()), dtype=torch.float64, device="cpu")
            logs = logs.reshape(-1, *[1] * (len(shape) - 1))
            self._set(self._now, version, Deviation(plus(logs, self._now.get(version, PLAIN).logs, shape)))
            readers.update(self.flow.readers.get(version, ()))
        self._propagate(readers)
        return mark

    def rewind(self, mark: int) -> None:
        """Takes back what was scaled since a call of `scale` that returned this mark."""
        while len(self._undo) > mark:
            table, key, before = self._undo.pop()
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        before = table.get(key)
        if before is None and value is None:
            return
        self._undo.append((table, key, before))
        if value is None:
            del table[key]
        else:
            table[key] = value

    def change(self, index: int) -> tuple[str, bool]:
        """Words how the constants of an operation change, and tells whether they do by one factor."""
        operation, numbers = self.flow.operations[index], ""
        for drift in self._drifts:
            if drift.operation == index:
                numbers = f"{drift.old:g} became {drift.new:g}"
                if not drift.old or drift.new / drift.old <= 0:
                    return f"follows a size: {numbers}", False
        inverse = scaling_of(self._rules, operation.op) is Scaling.QUOTIENT
        logs = [-(log or 0.0) if inverse else log or 0.0 for log in self._numbers.get(index, {}).values()]
        for position, ref in enumerate(operation.references()):
            if ref.index in self._folding.values:
                found = self._folding.logs(ref)
                if found is None or isinstance(found, torch.Tensor):
                    return "follows a size: not by one factor", False
                logs.append(-found if inverse and position else found)
        if not logs:
            return "follows a size, and is an output of the model", False
        factor = f"follows a size and changes by a factor of {math.exp(sum(logs)):.4g}"
        return f"{factor} ({numbers})" if numbers else factor, True

    def _propagate(self, starts: Iterable[int]) -> None:
        heap = sorted(starts)
        waiting = set(heap)
        while heap:
            index = heapq.heappop(heap)
            waiting.discard(index)
            for version in self._visit(index):
                for reader in self.flow.readers.get(version, ()):
                    if reader not in waiting:
                        waiting.add(reader)
                        heapq.heappush(heap, reader)

    def _visit(self, index: int) -> list[Version]:
        """Works out one operation; returns the versions that have changed by that."""
        if index == self.flow.end:
            self._check_results()
            return []
        operation = self.flow.operations[index]
        if self._is_folded(operation) and operation.outputs:
            return []
        refs, found = operation.references(), [PLAIN] * len(operation.outputs)
        read = [self._operand(operation, ref) for ref in refs]
        try:
            if any(item is None for item in read):
                raise StuckError("not by one factor")
            known = [item or PLAIN for item in read]
            found = self._results(operation, known, self._numbers.get(index, {}))
            self._set(self.stuck, index, None)
        except StuckError as error:
            constant = {k for k, ref in enumerate(refs) if ref.index in self._folding.values}
            free = [way for way in error.ways if not any(position in constant for position, _ in way)]
            ways = [tuple((refs[position], logs) for position, logs in way) for way in free]
            direct = constant and not ways
            sources = frozenset({index} if direct or self._numbers.get(index) else ()).union(
                *(item.sources for item in read if item is not None)
            )
            why = NO_FACTOR if direct and error.ways else str(error)
            logs = tuple(item.logs if item is not None else math.inf for item in read)
            self._set(self.stuck, index, Stuck(why, logs, tuple(ways), sources))
        changed = []
        for ref, deviation in zip(operation.outputs, found, strict=True):
            version = (ref.index, index)
            if not deviation.same_as(self._now.get(version, PLAIN)):
                self._set(self._now, version, deviation)
                changed.append(version)
        return changed

    def _results(self, operation: Operation, read: list[Deviation], numbers: Numbers) -> list[Deviation]:
        found = self.transfer.results(operation, read, numbers)
        refs = operation.references()
        for ref, deviation in zip(operation.outputs, found, strict=True):
            written = ref in refs and not same(deviation.logs, read[refs.index(ref)].logs)
            if written and self._is_seen_elsewhere(operation, ref):
                raise StuckError(f"{operation.name} writes into memory that is read elsewhere")
        mean = bool(found) and all(deviation.is_mean() for deviation in found)
        if mean and self._scaled:  # rows that are scaled don't make a mean
            mean = same(self.means.get(operation.index, 0.0), found[0].logs)
        self._set(self.means, operation.index, found[0].logs if mean else None)
        return [PLAIN] * len(found) if mean else found

    def _is_seen_elsewhere(self, operation: Operation, ref: TensorRef) -> bool:
        """Whether what an operation writes into a tensor is read later through another view of its memory."""
        own = self._places(ref.index)
        for other in self.flow.views_read_later(operation, ref):
            theirs = self._places(other)
            if own is None or theirs is None or bool((own & theirs).any()):
                return True
        return False

    def _places(self, index: int) -> torch.Tensor | None:
        """Which elements of the tensor that it is a view of a tensor holds; None where that isn't known."""
        shares, shapes = self._recording.trace.shares, self._recording.trace.shapes
        chain = [index]
        while shares.get(chain[-1], chain[-1]) != chain[-1]:
            chain.append(shares[chain[-1]])
        root = chain[-1]
        labels = torch.arange(math.prod(shapes[root]), device="cpu").reshape(shapes[root])
        for source, view in itertools.pairwise(reversed(chain)):
            maker = self.flow.first_maker(view)
            if maker is None or scaling_of(self._rules, maker.op) is not Scaling.MOVED or len(maker.references()) != 1:
                return None
            if shapes[view] != shapes[source] or "dtype" not in maker.arguments:
                result = maker.op(**plain_arguments(maker, {source: labels}))
                results = [result] if isinstance(result, torch.Tensor) else list(result)
                labels = results[[ref.index for ref in maker.outputs].index(view)]
        mask = torch.zeros(math.prod(shapes[root]), dtype=torch.bool, device="cpu")
        mask[labels.flatten()] = True
        return mask

    def _operand(self, operation: Operation, ref: TensorRef) -> Deviation | None:
        """How an operand differs; None if it is a constant that has changed, but not by positive factors."""
        if ref.index not in self._folding.values:
            return self._now.get(self.flow.version(operation.index, ref), PLAIN)
        logs = self._folding.logs(ref)
        if logs is None:
            return None
        return Deviation(logs, sources=frozenset({operation.index}))

    def _check_results(self) -> None:
        found = {v: self._now[v] for v in self.flow.results if v in self._now and self._now[v].differs}
        for version in self.flow.results:
            if version[0] in self._folding.values and not same(self._folding.logs(TensorRef(version[0])) or 0.0, 0.0):
                found[version] = Deviation(math.inf, sources=frozenset({version[1]}))
        if not found:
            return self._set(self.stuck, self.flow.end, None)
        ways = tuple((TensorRef(version[0]), -item.logs) for version, item in found.items())
        sources = frozenset[int]().union(*(item.sources for item in found.values()))
        read = tuple(self._now.get(version, PLAIN).logs for version in self.flow.results)
        return self._set(self.stuck, self.flow.end, Stuck("it is an output of the model", read, (ways,), sources))

    def vanishes(self, operation: Operation, ref: TensorRef) -> bool:
        """Whether an operand holds nothing but zeros and infinities, which no positive factor changes."""
        maker = self.flow.maker(self.flow.version(operation.index, ref))
        if maker is None:
            return False
        how = scaling_of(self._rules, maker.op)
        if how is Scaling.ZEROS:
            return True
        if how is Scaling.MOVED and maker.references() and ref not in maker.references():
            return all(self.vanishes(maker, source) for source in maker.references())
        value = self._folding.fixed(ref)
        return value is not None and bool(((value == 0) | value.isinf()).all())

    def is_made(self, operation: Operation, ref: TensorRef) -> bool:
        """Whether an operand depends on what a layer or a matrix product makes, not on constants only."""
        return self.flow.is_made(self.flow.version(operation.index, ref), self._rules)

    def _contracts(self, operation: Operation, ref: TensorRef) -> bool:
        """Whether an operand is a product of two different activations, so that its sum is a scalar product."""
        version = self.flow.version(operation.index, ref)
        maker = self.flow.maker(version)
        if maker is None:
            return False
        if version not in self._products:
            self._products[version] = False
            how, made = scaling_of(self._rules, maker.op), list(dict.fromkeys(maker.references()))
            made = [source for source in made if self.is_made(maker, source)]
            product = how is Scaling.PRODUCT and len(made) > 1
            passes = how in (Scaling.MOVED, Scaling.WHOLE, Scaling.PRODUCT, Scaling.QUOTIENT)
            self._products[version] = product or (passes and any(self._contracts(maker, source) for source in made))
        return self._products[version]

"""Which consumer takes over what removed branches added, found in the recorded program.

Where ``r + W x + q`` becomes ``r' + W' x'`` because the branch ``q`` is gone, ``W'`` is fitted so that the sum is what
it was with ``q`` (Shopkhoev et al., ReplaceMe: Network Simplification via Depth Pruning and Transformer
Block Linearization, 2025).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import attrs

from prunekit_core.branches.branch import Branch, named_branches
from prunekit_core.branches.needs import Needs
from prunekit_core.groups.analysis import Analysis
from prunekit_core.program.rules import RuleTable, addition_of
from prunekit_core.program.trace import Operation, TensorRef
from prunekit_plugins.calibration.branch_sums import SumPoint, number_sums, recorded_position

RECTIFIERS = ("aten::relu", "aten::relu_")
"""Names of the operations that may stand between a sum and the next one."""
DROPOUTS = ("aten::dropout", "aten::dropout_", "aten::feature_dropout", "aten::feature_dropout_")
"""Names of the operations that hand on what they are given outside of training."""
VIEWS = ("aten::view", "aten::reshape", "aten::flatten", "aten::unflatten", "aten::squeeze", "aten::unsqueeze")
"""Names of the operations that give what they are given another shape."""
NOTHING_BESIDE = "nothing that stays is added to the same sum right before or after it in a way that can be fitted"


@attrs.frozen(eq=False)
class Takeover:
    """A consumer that takes over what removed branches added.

    Attributes:
        parameter: Canonical name of its weight in the original.
        branches: Names of the branches.
        normed: Whether what it puts out goes through a norm with running statistics first.
        sums: The number of sums that stay, through which its output goes until it is compared.
        skips: Whether sums with a removed branch lie among them.
        goal: The sum of the original that the last of them should be like.
        rectified: The last of them in the original where a relu follows it and comes before the goal, so that only what
            is above zero counts; None without one.
    """

    parameter: str
    branches: tuple[str, ...]
    normed: bool
    sums: int
    skips: bool
    goal: SumPoint
    rectified: SumPoint | None


@attrs.frozen
class _Way:
    """How an operand of a sum follows from a consumer.

    Attributes:
        consumer: Index of the consumer's operation.
        normed: Whether it goes through a norm.
        sums: Indices of the sums that stay on the way.
        skips: Whether a sum with a removed branch is among those that it goes through.
        last: Index of the last operation of the way.
    """

    consumer: int
    normed: bool
    sums: tuple[int, ...]
    skips: bool
    last: int


def find_takeovers(
    analysis: Analysis, branches: Sequence[Branch], absent: Collection[str], rules: RuleTable
) -> tuple[list[Takeover], dict[str, str]]:
    """Finds what takes over what some branches added.

    Of the branches that stay it is the last one before them in the same sum, otherwise the next one behind them.

    Args:
        analysis: What the branches were found in.
        branches: All branches of the model.
        absent: Names of those that go.
        rules: The op rules.

    Returns:
        The consumers in the order of the program, and the branches that nothing takes over, with the reason.
    """
    return _Search(analysis, named_branches(branches, absent), rules).found()


class _Search:
    def __init__(self, analysis: Analysis, removed: Sequence[Branch], rules: RuleTable) -> None:
        self._rules, self._position = rules, recorded_position(analysis)
        self._trace = analysis.recordings[self._position].trace
        self._needs, self._points = Needs(self._trace), number_sums(self._trace, rules)
        self._gone: set[int] = set()
        self._removed: dict[int, dict[str, tuple[str, ...]]] = {}  # sum to argument to branches
        self._names = [branch.name for branch in removed]
        for branch in removed:
            self._gone |= branch.operations(self._position)
            for one in branch.sums:
                if one.recording == self._position:
                    self._removed.setdefault(one.operation, {})[one.argument] = (branch.name,)
        self._join()
        self._readers = _readers(self._needs)
        self._weights = {ref.index: name for name, ref in self._trace.parameters.items()}
        self._add_casts()

    def _add_casts(self) -> None:
        """Adds what parameters become in another dtype, as under autocast, to the weights."""
        shapes, dtypes = self._trace.shapes, self._trace.dtypes
        for operation in self._trace.operations:
            read = operation.references()
            if len(read) != 1 or len(operation.outputs) != 1:
                continue
            (source,), (out,) = read, operation.outputs
            name, pair = self._weights.get(self._trace.memory(source.index)), (dtypes[source.index], dtypes[out.index])
            cast = pair[0] != pair[1] and all(dtype.is_floating_point for dtype in pair)
            if name is not None and cast and shapes[source.index] == shapes[out.index]:
                self._weights[self._trace.memory(out.index)] = name

    def _join(self) -> None:
        """Takes sums of which all operands are gone for operands that are gone themselves."""
        for index in self._points:
            lost = self._removed.get(index, {})
            if len(lost) < 2:
                continue
            del self._removed[index]
            self._gone.add(index)
            names = tuple(dict.fromkeys(name for one in lost.values() for name in one))
            for later in self._points:
                for argument in self._summands(later) if later > index else ():
                    if self._maker(later, self._operand(later, argument)) == index:
                        self._removed.setdefault(later, {})[argument] = names

    def found(self) -> tuple[list[Takeover], dict[str, str]]:
        """Searches for every sum that lost an operand."""
        made: dict[int, Takeover] = {}
        for index in sorted(self._removed):
            takeover = self._takeover(index)
            if takeover is not None:
                consumer, new = takeover
                earlier = made.get(consumer)
                if earlier is not None:
                    new = attrs.evolve(new, branches=tuple(dict.fromkeys((*earlier.branches, *new.branches))))
                made[consumer] = new
        first: dict[str, Takeover] = {}  # a program that was recorded several times over repeats itself
        for consumer in sorted(made):
            first.setdefault(made[consumer].parameter, made[consumer])
        taken = {name for one in first.values() for name in one.branches}
        return list(first.values()), {name: NOTHING_BESIDE for name in self._names if name not in taken}

    def _takeover(self, index: int) -> tuple[int, Takeover] | None:
        lost = self._removed[index]
        stream = [name for name in self._summands(index) if name not in lost]
        if len(stream) != 1 or index in self._gone:
            return None
        way, rectified = self._before(index, self._operand(index, stream[0]))
        goal = index
        if way is None:
            way = self._behind(index)
            if way is None:
                return None
            goal = way.sums[-1]
        names = tuple(name for one in lost.values() for name in one)
        place = self._points[way.sums[-1]] if rectified else None
        takeover = Takeover(
            self._weight(way.consumer), names, way.normed, len(way.sums), way.skips, self._points[goal], place
        )
        return way.consumer, takeover

    def _before(self, at: int, ref: TensorRef) -> tuple[_Way | None, bool]:
        """Finds the last consumer before a sum that lost an operand, and tells whether a relu is between."""
        chain, rectified = {at}, False
        while True:
            made = self._maker(at, ref)
            if made < 0 or made in self._gone or not self._readers[made] <= chain | self._gone:
                return None, rectified
            operation = self._trace.operations[made]
            if operation.name in RECTIFIERS:
                rectified, ref = True, operation.references()[0]
            elif (source := self._rest(made) or self._viewed(operation)) is not None:
                ref = source
            else:
                break
            chain.add(made)
            at = made
        way = max(self._ways(at, ref, chain), key=lambda one: one.consumer, default=None)
        if way is None or (rectified and (not way.sums or way.sums[-1] != way.last)):
            return None, rectified
        return way, rectified

    def _behind(self, index: int) -> _Way | None:
        """Finds the consumer that is added next to what a sum that lost an operand is handed on to."""
        for later in sorted(self._points):
            if later <= index or later in self._removed or later in self._gone:
                continue
            first, second = (self._operand(later, name) for name in self._summands(later))
            for stream, other in ((first, second), (second, first)):
                if self._leads_to(index, later, stream):
                    ways = [one for one in self._ways(later, other, {later}) if one.consumer > index]
                    way = max(ways, key=lambda one: one.consumer, default=None)
                    return None if way is None else attrs.evolve(way, sums=(*way.sums, later), last=later)
        return None

    def _leads_to(self, index: int, at: int, ref: TensorRef) -> bool:
        """Whether a tensor is the result of a sum, but for further removed branches, views and a relu."""
        while (made := self._maker(at, ref)) > index:
            operation = self._trace.operations[made]
            if operation.name in RECTIFIERS:
                ref = operation.references()[0]
            elif (source := self._rest(made) or self._viewed(operation)) is not None:
                ref = source
            else:
                return False
            at = made
        return made == index

    def _ways(self, at: int, ref: TensorRef, chain: Collection[int]) -> Iterator[_Way]:
        """Yields the ways from consumers to a tensor that nothing else reads what they put out on."""
        made = self._maker(at, ref)
        if made < 0 or made in self._gone or not self._readers[made] <= self._gone.union(chain):
            return
        operation = self._trace.operations[made]
        if self._weight(made):
            yield _Way(made, False, (), False, made)
        elif made in self._points:
            lost = self._removed.get(made, {})
            for name in self._summands(made):
                for way in () if name in lost else self._ways(made, self._operand(made, name), {made}):
                    sums = way.sums if lost else (*way.sums, made)
                    yield attrs.evolve(way, sums=sums, skips=way.skips or bool(lost), last=made)
        elif (source := self._viewed(operation)) is not None:
            yield from self._ways(made, source, {made})
        elif (source := self._centred(operation)) is not None:
            for way in self._ways(made, source, {made}):
                if not (way.normed or way.sums or way.skips):
                    yield attrs.evolve(way, normed=True, last=made)

    # -- operations

    def _maker(self, at: int, ref: TensorRef) -> int:
        """Returns the operation that made or wrote a tensor that an operation reads; -1 for none."""
        return max(self._needs.source(at, ref), default=-1)

    def _summands(self, index: int) -> tuple[str, str]:
        """Names the arguments that a sum adds."""
        addition = addition_of(self._rules, self._trace.operations[index].op)
        assert addition is not None
        return addition.first, addition.second

    def _operand(self, index: int, name: str) -> TensorRef:
        operand: TensorRef = self._trace.operations[index].arguments[name]
        return operand

    def _rest(self, index: int) -> TensorRef | None:
        """Returns what is left of a sum that lost an operand; None for other operations, and where nothing is."""
        lost = self._removed.get(index, {})
        pair = self._summands(index) if lost else ()
        left = [self._operand(index, name) for name in pair if name not in lost]
        return left[0] if len(left) == 1 else None

    def _weight(self, index: int) -> str:
        """Returns the name of the parameter that an operation multiplies by; empty where it is no consumer."""
        operation = self._trace.operations[index]
        rule = self._rules.find(operation.op)
        weight = operation.arguments.get(rule.reads.weight) if rule is not None and rule.reads is not None else None
        if not isinstance(weight, TensorRef):
            return ""
        return self._weights.get(self._trace.memory(weight.index), "")

    def _viewed(self, operation: Operation) -> TensorRef | None:
        """Returns what an operation hands on, maybe in another shape; None where it does something else."""
        name = operation.name.partition(".")[0]
        handed_on = name in VIEWS or (name in DROPOUTS and not operation.arguments["train"])
        return operation.references()[0] if handed_on else None

    def _centred(self, operation: Operation) -> TensorRef | None:
        """Returns what an operation subtracts a running mean from; None where it doesn't."""
        rule = self._rules.find(operation.op)
        centring = None if rule is None else rule.centres
        if centring is None or operation.arguments[centring.switch]:
            return None
        found: TensorRef = operation.arguments[centring.source]
        return found


def _readers(needs: Needs) -> list[set[int]]:
    """Lists for every operation those that read what it made or wrote, -1 for the results of the program."""
    found = [{-1} if needs.is_result(index) else set[int]() for index in range(len(needs.trace.operations))]
    for operation in needs.trace.operations:
        for _, sources in needs.sources[operation.index] if needs.needed[operation.index] else ():
            for source in sources:
                found[source].add(operation.index)
    return found

"""Finding branches: every operand of a sum that the program computes for that sum only."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import attrs
from torch import nn

from prunekit_core.branches.branch import Branch, BranchKind, Summand
from prunekit_core.branches.needs import Needs, Read, needs_of
from prunekit_core.collector import collection_paused
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.expert_lists import alike
from prunekit_core.program.linear_forms import Addition
from prunekit_core.program.rules import RuleTable, addition_of
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous

_Key = tuple[tuple[str, ...], int]
"""What makes operands one branch: the parameters that they read, and how many operands that read the same contain
them."""

NOT_RELATED = "it has nothing in common with what it is added to: the sum joins two things (tokens and positions)"


def find_branches(analysis: Analysis, rules: RuleTable) -> tuple[Branch, ...]:
    """Finds the branches of a model from its recorded programs, once for an analysis.

    For each sum of two tensors of one shape, and each of them: if it were zero, the results wouldn't need some
    operations any more. If these read parameters, it is a branch.

    Args:
        analysis: The analysed model.
        rules: The op rules, which say what adds.

    Returns:
        Every branch, in the order of the program, those that can't go with the reason.
    """
    known = _KNOWN.get(analysis)
    if known is None or known[0] is not rules:
        with collection_paused():
            known = _KNOWN[analysis] = (rules, _Search(analysis, rules).found())
    return known[1]


_KNOWN: weakref.WeakKeyDictionary[Analysis, tuple[RuleTable, tuple[Branch, ...]]] = weakref.WeakKeyDictionary()


class _Search:
    def __init__(self, analysis: Analysis, rules: RuleTable) -> None:
        self._analysis, self._rules = analysis, rules
        self._needs = needs_of(analysis)
        tensors = analysis.shadow.tensors()
        self._parameters = {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        self._order = {name: place for place, name in enumerate(analysis.parameters)}

    def found(self) -> tuple[Branch, ...]:
        alike: dict[_Key, list[Summand]] = {}
        for position in range(len(self._needs)):
            for key, summand in self._keyed(position):
                alike.setdefault(key, []).append(summand)
        groups = [self._together(summands) for summands in self._joined(alike.values())]
        return self._numbered([self._branch(summands) for summands in groups])

    def _branch(self, summands: list[Summand]) -> Branch:
        """Makes a branch, with a name that others may have as well."""
        parameters, kind = self._own(summands), self._kind(summands[0])
        reads = dict.fromkeys(name for summand in summands for name in summand.reads)
        shared = tuple(name for name in reads if name not in parameters)
        name, reason = self._name(summands[0], parameters), self._reason(summands, kind, parameters)
        return Branch(name, kind, tuple(summands), self._with_entries(parameters), shared, reason)

    def _with_entries(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Adds what no recording read of lists of modules that are alike: a branch that has one of them has all."""
        lists = self._analysis.lists
        if not lists:
            return names
        found = dict.fromkeys(other for name in names for other in (name, *alike(lists, name)))
        return tuple(sorted(filter(self._order.__contains__, found), key=self._order.__getitem__))

    def _numbered(self, branches: Sequence[Branch]) -> tuple[Branch, ...]:
        """Numbers branches of one name: those that can go before others, and whole ones before parts of them."""
        alike: dict[str, list[Branch]] = {}
        for branch in branches:
            alike.setdefault(branch.name, []).append(branch)
        names: dict[int, str] = {}
        for name, several in alike.items():
            ordered = sorted(several, key=lambda one: (bool(one.reason), any(map(one.is_part_of, several))))
            for number, branch in enumerate(ordered, 1):
                names[id(branch)] = name if number == 1 else f"{name}~{number}"
        return tuple(attrs.evolve(branch, name=names[id(branch)]) for branch in branches)

    def _keyed(self, position: int) -> Iterator[tuple[_Key, Summand]]:
        """Yields the operands of one program, in order, with what makes them the same branch as others."""
        summands = list(self._summands(position))
        alike: dict[tuple[str, ...], list[Summand]] = {}
        for summand in summands:
            alike.setdefault(summand.reads, []).append(summand)
        for summand in summands:
            around = sum(
                summand.operation in other.operations for other in alike[summand.reads] if other is not summand
            )
            yield (summand.reads, around), summand

    def _summands(self, position: int) -> Iterator[Summand]:
        needs = self._needs[position]
        for operation in needs.trace.operations:
            addition = self._addition(operation)
            if addition is None or not needs.needed[operation.index]:
                continue
            first, second = (operation.arguments[name] for name in (addition.first, addition.second))
            if not _is_plain(needs.trace, operation, first, second):
                continue
            for argument, tensor, rest in ((addition.first, first, second), (addition.second, second, first)):
                only = needs.only_for([(operation.index, tensor)])
                reads = needs.names_read(only) if only else ()
                if self._parameters.isdisjoint(reads) or self._holds_stream(needs, operation.index, tensor, rest):
                    continue
                ordered = tuple(sorted(only | needs.followers(only)))
                yield Summand(position, operation.index, argument, tensor, rest, ordered, reads)

    def _holds_stream(self, needs: Needs, place: int, tensor: TensorRef, other: TensorRef) -> bool:
        """Whether one operand of a sum is a sum itself, of something that the other operand is computed from.

        In ``(x + a(x)) + b(x)`` the first operand is no branch, and the second one is added to the stream.
        """
        pending = list(self._operands(needs, place, tensor))
        while pending:
            operation, ref = pending.pop(0)
            if needs.meeting((operation, ref), (place, other)) == needs.version(operation, ref):
                return True
            pending.extend(self._operands(needs, operation, ref))
        return False

    def _operands(self, needs: Needs, place: int, tensor: TensorRef) -> Iterator[Read]:
        """Yields what a tensor is the sum of, as an operation reads it; nothing if it is no sum."""
        made = needs.trace.operations[max(needs.source(place, tensor), default=0)]
        addition = self._addition(made) if tensor in made.outputs else None
        for name in (addition.first, addition.second) if addition is not None else ():
            ref = made.arguments[name]
            if isinstance(ref, TensorRef):
                yield made.index, ref

    def _addition(self, operation: Operation) -> Addition | None:
        addition = addition_of(self._rules, operation.op)
        return addition if addition is not None and addition.branches else None

    def _joined(self, alike: Iterable[list[Summand]]) -> list[list[Summand]]:
        """Joins operands of one module of which one reads some of what the other reads.

        They are two ways of one branch: an attention reads its keys from a cache in one call, and computes them for it
        in another. Operands of which one contains the other are two branches.
        """
        joined: list[list[Summand]] = []
        sites: dict[tuple[str, str], list[list[Summand]]] = {}
        for summands in alike:
            operation = self._needs[summands[0].recording].trace.operations[summands[0].operation]
            there = sites.setdefault((operation.module, summands[0].argument), [])
            same = next((others for others in there if _is_same(others, summands)), None)
            if same is None:
                there.append(summands)
                joined.append(summands)
            else:
                same.extend(summands)
        return joined

    def _together(self, summands: list[Summand]) -> list[Summand]:
        """Adds the operations that nothing needs once all of some operands are gone to the first one behind them."""
        ordered = sorted(summands, key=lambda one: (one.recording, one.operation))
        found: list[Summand] = []
        for position in dict.fromkeys(summand.recording for summand in ordered):
            needs, here = self._needs[position], [one for one in ordered if one.recording == position]
            if len(here) == 1:
                found.extend(here)
                continue
            more = needs.only_for((one.operation, one.tensor) for one in here)
            more -= {index for one in here for index in one.operations}
            for one in here:
                own = {index for index in more if index < one.operation}
                more -= own
                operations = tuple(sorted(own | set(one.operations)))
                reads = needs.names_read(index for index in operations if needs.needed[index])
                found.append(attrs.evolve(one, operations=operations, reads=reads))
        return found

    def _own(self, summands: Sequence[Summand]) -> tuple[str, ...]:
        """Lists the parameters and buffers that nothing else reads."""
        within: dict[int, set[int]] = {}
        for summand in summands:
            within.setdefault(summand.recording, set()).update(summand.operations)

        def is_own(name: str) -> bool:
            return all(
                index in within.get(position, ()) or not needs.needed[index]
                for position, needs in enumerate(self._needs)
                for index in needs.readers.get(name, ())
            )

        reads = dict.fromkeys(name for summand in summands for name in summand.reads)
        return tuple(sorted(filter(is_own, reads), key=self._order.__getitem__))

    def _kind(self, summand: Summand) -> BranchKind:
        needs = self._needs[summand.recording]
        place, tensor, rest = summand.operation, summand.tensor, summand.rest
        met = needs.meeting((place, tensor), (place, rest))
        if met is None:
            return BranchKind.OTHER
        residual = met == needs.version(place, rest) or self._holds_stream(needs, place, rest, tensor)
        return BranchKind.RESIDUAL if residual else BranchKind.FORK

    def _reason(self, summands: Sequence[Summand], kind: BranchKind, parameters: Sequence[str]) -> str:
        """Says why a branch can't be switched off; empty where it can."""
        if kind is BranchKind.OTHER:
            return NOT_RELATED
        if self._analysis.undecoded:
            return self._analysis.undecoded
        for summand in summands:
            needs = self._needs[summand.recording]
            decision = next(self._decisions(summand), None)
            if decision is not None:
                return f"the program decides by its values: {decision.site}"
            for name in needs.names_written(summand.operations):
                if name not in parameters and any(self._read_elsewhere(name, summands)):
                    return f"it writes to {name}, which is read elsewhere"
        there = {summand.recording for summand in summands}
        for position, needs in enumerate(self._needs):
            if position not in there and any(any(self._needed(needs, name)) for name in summands[0].reads):
                label = needs.trace.label
                return f"what it reads is used in another way where the model is recorded as {label!r}"
        return ""

    def _decisions(self, summand: Summand) -> Iterator[Operation]:
        """Yields the operations that return no tensor (``item``), but for those in modules that the sum isn't made in.

        What a module of the branch decides goes with it.
        """
        operations = self._needs[summand.recording].trace.operations
        place = operations[summand.operation].module
        for index in summand.operations:
            if not operations[index].outputs and _is_in(place, operations[index].module):
                yield operations[index]

    def _read_elsewhere(self, name: str, summands: Sequence[Summand]) -> Iterator[bool]:
        for position, needs in enumerate(self._needs):
            within = {index for one in summands if one.recording == position for index in one.operations}
            yield any(index not in within and needs.needed[index] for index in needs.readers.get(name, ()))

    def _needed(self, needs: Needs, name: str) -> Iterator[bool]:
        return (needs.needed[index] for index in needs.readers.get(name, ()))

    def _name(self, summand: Summand, parameters: Sequence[str]) -> str:
        """Names a branch after a module; see `Branch.name`."""
        held = [name for name in parameters or summand.reads if name in self._parameters] or list(summand.reads)
        owners = [name.rpartition(".")[0] for name in held]
        around = _common(owners)
        needs = self._needs[summand.recording]
        place = needs.trace.operations[summand.operation].module
        before = reversed(needs.trace.operations[: summand.operation])
        made = next(operation for operation in before if summand.tensor in operation.outputs)
        listed = isinstance(self._analysis.shadow.modules.get(around), nn.ModuleList | nn.ModuleDict)
        if (not _is_in(place, around) and not listed) or (around and self._addition(made) is not None):
            return around
        inside: Counter[str] = Counter()
        for name, owner in zip(held, owners, strict=True):
            if owner != around:
                child = ".".join(owner.split(".")[: len(around.split(".")) + 1 if around else 1])
                inside[child] += len(self._analysis.parameters[name].shape) > 1
        return max(inside, key=inside.__getitem__) if inside else around or held[0]


def _is_same(first: Sequence[Summand], second: Sequence[Summand]) -> bool:
    """Whether all that the one reads, the other reads as well, and neither contains the other."""
    a, b = set(first[0].reads), set(second[0].reads)
    return (a <= b or b <= a) and not any(
        one.recording == other.recording
        and (one.operation in other.operations or other.operation in one.operations or one.operation == other.operation)
        for one in first
        for other in second
    )


def _is_plain(trace: Trace, operation: Operation, first: object, second: object) -> bool:
    """Whether an operation adds two tensors of real numbers that have the shape of the sum."""
    if not isinstance(first, TensorRef) or not isinstance(second, TensorRef) or first == second:
        return False
    shapes = {trace.shapes[ref.index] for ref in (first, second, *operation.outputs)}
    return len(shapes) == 1 and all(is_continuous(trace.dtypes[ref.index]) for ref in (first, second))


def _common(paths: Sequence[str]) -> str:
    """Returns the innermost module that is, or contains, each of some modules."""
    parts = [path.split(".") if path else [] for path in paths]
    shortest = min(parts, key=len)
    same = next((depth for depth, name in enumerate(shortest) if any(p[depth] != name for p in parts)), len(shortest))
    return ".".join(shortest[:same])


def _is_in(path: str, around: str) -> bool:
    return not around or path == around or path.startswith(f"{around}.")

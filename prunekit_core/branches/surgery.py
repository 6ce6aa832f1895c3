"""Taking branches out of a model: which modules computed nothing else, and what the program is without them.

A module goes if everything that its calls compute is needed only for the branches, or is a sum of which the other
operand is left. In its place stands one (`Absent`) that returns what the module was given: what is left of the sum, or
anything where only modules read it which go as well; or else zeros. What the program still computes from the zeros has
to be zero up to the sums, by the op rules; then the rest of the program is the original with the branches switched off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from prunekit_core.branches.branch import Branch
from prunekit_core.branches.calls import Call, Thing, calls_of
from prunekit_core.branches.children import Children, UnfitError
from prunekit_core.branches.idle import Idle
from prunekit_core.branches.left_over import LeftOver, WrongError
from prunekit_core.branches.needs import needs_of
from prunekit_core.errors import RehearsalError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.absent import (
    Handed,
    Plain,
    Result,
    Several,
    Zeros,
    children_of,
    joined_shape,
)
from prunekit_core.modules.edits import Stub
from prunekit_core.program.rules import Elementwise, RuleTable
from prunekit_core.program.trace import TensorRef, Trace
from prunekit_core.torch_private.objects import has_hooks

Paths = Mapping[str, Sequence[str]]
"""Path of each module that is exchanged to those of modules in it that it goes on to call."""


@attrs.frozen(eq=False)
class Surgery:
    """How branches are taken out of a model.

    Attributes:
        absent: Names of the branches.
        stubs: The modules that are exchanged.
        gone: Parameters and buffers that go with them, in the model's order.
        analysis: What is known about the model that is left; its recordings are what that has to run.
        removed: By recording of the whole model: indices of the operations that run no more.
    """

    absent: tuple[str, ...]
    stubs: tuple[Stub, ...]
    gone: tuple[str, ...]
    analysis: Analysis
    removed: tuple[frozenset[int], ...]

    def places(self, whole: Trace, position: int) -> dict[int, int]:
        """Returns the index that each operation of a recording of the whole model has in what is left of it."""
        made = {stub.module for stub in self.stubs}
        left = self.analysis.recordings[position].trace.operations
        indices = [operation.index for operation in left if operation.module not in made]
        stay = [operation.index for operation in whole.operations if operation.index not in self.removed[position]]
        return dict(zip(stay, indices, strict=True))


def operate(
    analysis: Analysis,
    rules: RuleTable,
    branches: Sequence[Branch],
    stubs: Sequence[Stub] | None = None,
    *,
    leave: Collection[str] = (),
) -> Surgery:
    """Works out how branches are taken out of a model.

    Args:
        analysis: The analysed model.
        rules: The op rules.
        branches: The branches that go.
        stubs: The modules to exchange, where that is decided already; None to find them.
        leave: Paths of modules that aren't exchanged themselves, only what is in them.

    Raises:
        RehearsalError: No module can be exchanged so that the program goes on as if they were zero.
    """
    analysis.shadow.rewind()  # an earlier rehearsal may have left its cut on it
    operation = _Operation(analysis, rules, branches, leave)
    if stubs is not None:
        return operation.surgery(stubs)
    try:
        return operation.surgery(None)
    except RehearsalError:
        operation.keep_sums()
        return operation.surgery(None)


def obstacles(analysis: Analysis, rules: RuleTable, branches: Sequence[Branch]) -> dict[str, str]:
    """Says why branches can't be taken out, each alone, as far as that is known without a run of what is left.

    Args:
        analysis: The analysed model.
        rules: The op rules.
        branches: Its branches.

    Returns:
        Name to reason, in their order; any other one may go.
    """
    analysis.shadow.rewind()  # a rehearsal may have left its cut on it
    found = {}
    for branch in branches:
        try:
            operate(analysis, rules, [branch])
        except RehearsalError as error:
            found[branch.name] = error.why
    return found


class _Operation:
    def __init__(
        self, analysis: Analysis, rules: RuleTable, branches: Sequence[Branch], leave: Collection[str]
    ) -> None:
        self._analysis, self._rules, self._branches, self._leave = analysis, rules, branches, leave
        for branch in branches:
            if branch.reason:
                raise self._refusal(branch.reason)
        calls = calls_of(analysis, rules)
        if calls is None:
            raise self._refusal("the program doesn't run the same operations each time")
        self._calls = calls
        self._needs = needs_of(analysis)
        self._sums = [
            [summand for branch in branches for summand in branch.sums if summand.recording == position]
            for position in range(len(calls))
        ]
        self._only = [self._needed_only(position) for position in range(len(calls))]
        self._idle = [Idle(*found, rules) for found in zip(self._needs, self._only, strict=True)]
        self._rests: list[dict[TensorRef, TensorRef]] = [{} for _ in calls]
        self._anything = True  # whether what nobody needs may be anything
        self._stands: list[dict[int, TensorRef]] = []  # by recording: what stands for a tensor that nobody reads
        self.lifted: list[dict[int, TensorRef]] = [self._liftable(position) for position in range(len(calls))]
        self._children = self._seen()
        self._check_sums()

    def _refusal(self, why: str) -> RehearsalError:
        return RehearsalError(
            "The program can't go on without these branches.",
            where=", ".join(branch.name for branch in self._branches),
            why=why,
            hint="leave them out",
        )

    def _needed_only(self, position: int) -> set[int]:
        """Finds the operations that are needed for the branches only, for several of them together as well."""
        needs = self._needs[position]
        only = needs.only_for((summand.operation, summand.tensor) for summand in self._sums[position])
        return only | needs.followers(only) if only else only

    def _check_sums(self) -> None:
        """Refuses to take both operands of a sum, which would leave zeros."""
        for position, sums in enumerate(self._sums):
            places = [summand.operation for summand in sums if summand.operation not in self._only[position]]
            twice = next((place for place in places if places.count(place) > 1), None)
            if twice is not None:
                site = self._analysis.recordings[position].trace.operations[twice].site
                raise self._refusal(f"nothing would be left of a sum: {site}")

    def _liftable(self, position: int) -> dict[int, TensorRef]:
        """Finds the sums of which one operand is left, which may stand for the result."""
        trace = self._analysis.recordings[position].trace
        found: dict[int, TensorRef] = {}
        for summand in self._sums[position]:
            (out,) = trace.operations[summand.operation].outputs
            if trace.dtypes[out.index] == trace.dtypes[summand.rest.index]:
                found[summand.operation] = self._rests[position][out] = summand.rest
        return found

    def keep_sums(self) -> None:
        """Lets all sums stay, so that zeros are added."""
        self.lifted, self._rests = [{} for _ in self.lifted], [{} for _ in self._rests]
        self._children = self._seen()

    def _seen(self) -> list[Children]:
        parts = zip(self._calls, self._needs, self._only, self.lifted, strict=True)
        return [Children(*part) for part in parts]

    def _left_of(self, position: int, ref: TensorRef) -> TensorRef:
        """Follows a tensor through sums of which one operand is left."""
        seen: set[TensorRef] = set()
        while ref in self._rests[position] and ref not in seen:
            seen.add(ref)
            ref = self._rests[position][ref]
        return ref

    def surgery(self, stubs: Sequence[Stub] | None) -> Surgery:
        if stubs is None:
            stubs = self._found()
        paths = {stub.module: _whole_paths(stub) for stub in stubs}
        removed = self._removed(paths)
        gone = self._parameters(paths)
        for position, operations in enumerate(removed):
            self._check_writes(position, operations, gone)
        recordings = [self._left(position, stubs, removed[position]) for position in range(len(removed))]
        left = attrs.evolve(
            self._analysis,
            recordings=tuple(recordings),
            parameters={name: found for name, found in self._analysis.parameters.items() if name not in gone},
            stubs=tuple(stubs),
        )
        names = tuple(branch.name for branch in self._branches)
        return Surgery(names, tuple(stubs), gone, left, tuple(map(frozenset, removed)))

    def _left(self, position: int, stubs: Sequence[Stub], removed: Collection[int]) -> Recording:
        left = LeftOver(
            self._analysis.recordings[position],
            self._rules,
            self._calls[position],
            self._needs[position],
            self._idle[position],
            self._sums[position],
            self.lifted[position],
            removed,
        )
        try:
            return left.recording(stubs)
        except WrongError as error:
            raise self._refusal(error.why) from error

    def _found(self) -> list[Stub]:
        """Finds the modules to exchange: outermost ones, or those in them where nothing can stand in their place."""
        unfit = dict.fromkeys(self._leave, "the program needs what is around these branches")
        modules = self._analysis.shadow.modules
        hooked = (path for path, module in modules.items() if path and has_hooks(module) and self._is_covered(path))
        unfit.update((path, f"{path} has hooks, which would no longer run") for path in hooked)
        while True:
            paths = self._modules(unfit)
            if not paths:
                raise self._refusal([*unfit.values(), "no module computes these branches and nothing else"][0])
            removed = self._removed(paths)
            self._stands = [{} for _ in removed]
            try:
                stubs = [Stub(path, self._result(path, children, removed)) for path, children in paths.items()]
            except UnfitError as error:
                unfit[error.path] = error.why
                continue
            self._check_costly(removed, unfit)
            return stubs

    def _removed(self, paths: Paths) -> list[set[int]]:
        return [self._operations_in(position, paths) for position in range(len(self._calls))]

    def _check_costly(self, removed: Sequence[Collection[int]], unfit: Mapping[str, str]) -> None:
        """Refuses where layers that only the branches have would go on to compute for nobody."""
        found = self._analysis.parameters
        own = {name for branch in self._branches for name in branch.parameters if not found[name].buffer}
        for position, only in enumerate(self._only):
            needs, trace = self._needs[position], self._analysis.recordings[position].trace
            for index in sorted(only.difference(removed[position])):
                rule = self._rules.find(trace.operations[index].op)
                cheap = trace.is_view(index) or (rule is not None and isinstance(rule.zeros, Elementwise))
                if needs.needed[index] and not cheap and not own.isdisjoint(needs.names_read([index])):
                    why = f"it would still run, for nothing: {trace.operations[index].site}"
                    raise self._refusal([*unfit.values(), why][0])

    # -- which modules

    def _modules(self, unfit: Collection[str]) -> Paths:
        """Lists the outermost modules whose calls compute the branches and nothing else, in order of their calls.

        And those that besides only call modules in them, on what is left of their sums.
        """
        adding = self._adding(unfit)
        covered = {path for path in self._analysis.shadow.modules if path not in unfit and self._is_covered(path)}
        covered.discard("")
        inside_swaps = {path for path, _ in self._analysis.swaps}
        covered |= adding.keys()
        covered -= {path for path in covered for swap in inside_swaps if path.startswith(f"{swap}.")}
        found: dict[str, tuple[str, ...]] = {}
        for calls in self._calls:
            made = [(call.order, call, path) for path in covered for call in calls.get(path, ())]
            end = 0  # of the last outermost call
            for _, call, path in sorted(made, key=lambda entry: entry[0]):
                if end <= call.start < call.stop:
                    end = call.stop
                    found[path] = adding.get(path, ())
        return found

    def _adding(self, unfit: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Finds modules in which a sum goes and that besides only call modules in them, which are listed."""
        found: dict[str, tuple[str, ...]] = {}
        places = {
            self._analysis.recordings[position].trace.operations[index].module
            for position, lifted in enumerate(self.lifted)
            for index in lifted
        }
        for path in sorted(places - {"", *unfit}):
            parts = [one.of(path) for one in self._children]
            if not has_hooks(self._analysis.shadow.modules[path]) and None not in parts:
                found[path] = tuple(sorted({child for part in parts for child in part or ()}))
        return {path: children for path, children in found.items() if children}

    def _is_covered(self, path: str) -> bool:
        """Whether everything that the results need of a module's calls is needed for the branches only."""
        ran = False
        for position, calls in enumerate(self._calls):
            needed, only, lifted = self._needs[position].needed, self._only[position], self.lifted[position]
            for call in calls.get(path, ()):
                inside = range(call.start, call.stop)
                if any(needed[index] and index not in only and index not in lifted for index in inside):
                    return False
                ran = ran or any(index in only for index in inside)
        return ran

    def _operations_in(self, position: int, paths: Paths) -> set[int]:
        found: set[int] = set()
        for path, children in paths.items():
            for call in self._calls[position].get(path, ()):
                found.update(range(call.start, call.stop))
                for _, one in self._children[position].staying(path, call) if children else ():
                    found.difference_update(range(one.start, one.stop))
        return found

    def _parameters(self, paths: Paths) -> tuple[str, ...]:
        """Lists the parameters and buffers that are registered in some modules only."""
        shadow = self._analysis.shadow
        inside = {id(part) for path in paths for part in shadow.modules[path].modules()}
        stay = [shadow.modules[child] for children in paths.values() for child in children]
        inside -= {id(part) for module in stay for part in module.modules()}
        kept, lost = set[str](), set[str]()
        for module in shadow.modules.values():
            tensors = (*module._parameters.values(), *module._buffers.values())
            names = {shadow.names[id(tensor)] for tensor in tensors if tensor is not None}
            (lost if id(module) in inside else kept).update(names)
        return tuple(name for name in self._analysis.parameters if name in lost - kept)

    def _check_writes(self, position: int, operations: Collection[int], gone: Collection[str]) -> None:
        for name in self._needs[position].names_written(operations):
            if name not in gone:
                raise self._refusal(f"a module that would go writes to {name}")

    # -- what stands in their place

    def _result(self, path: str, children: Sequence[str], removed: Sequence[Collection[int]]) -> Result:
        """Works out what the calls of a module return once it is gone.

        Args:
            path: The module.
            children: Modules in it that it goes on to call.
            removed: By recording: the operations in all modules that go.
        """
        before = [dict(stands) for stands in self._stands]
        for self._anything in (True, False):
            made = list(dict.fromkeys(self._results(path, children, removed)))
            if len(made) == 1:
                return made[0]
            self._stands = [dict(stands) for stands in before]
        raise UnfitError(path, f"the calls of {path} return different things")

    def _results(self, path: str, children: Sequence[str], removed: Sequence[Collection[int]]) -> Iterator[Result]:
        """Yields what each call of a module returns once it is gone."""
        for position, calls in enumerate(self._calls):
            for call in calls.get(path, ()):
                if children:
                    yield self._children[position].result(path, call)
                else:
                    yield self._form(path, position, call, call.result, removed[position])

    def _form(self, path: str, position: int, call: Call, value: Any, removed: Collection[int]) -> Result:
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            items = tuple(self._form(path, position, call, item, removed) for item in value)
            return Several(items, type(value) is list)
        if value is None or type(value) in (bool, int, float, str):
            return Plain(value)
        left = self._left_of(position, value) if isinstance(value, TensorRef) else value
        for given, argument in call.arguments:
            same = self._left_of(position, argument) if isinstance(argument, TensorRef) else argument
            if isinstance(left, TensorRef | Thing) and same == left:
                return Handed(given)
        if isinstance(value, TensorRef) and left == value:
            return self._zeros(path, position, call, value, removed)
        raise UnfitError(path, f"{path} returns {'a sum' if isinstance(value, TensorRef) else f'a {value.kind}'}")

    def _zeros(self, path: str, position: int, call: Call, ref: TensorRef, removed: Collection[int]) -> Result:
        trace = self._analysis.recordings[position].trace
        idle = self._idle[position].after(ref, call.start, removed) if self._anything else None
        given = [(given, value) for given, value in call.arguments if isinstance(value, TensorRef)]
        like = [(given, value) for given, value in given if self._is_like(position, value, ref)]
        if given and idle is not None:  # whatever it is, only what is removed would go on to read it
            argument, value = (like or given)[0]
            outputs = (out for index in idle for out in trace.operations[index].outputs)
            self._stands[position].update((one.index, value) for one in (ref, *outputs))
            return Handed(argument)
        if like:
            return Zeros(like[0][0])
        for argument, value in given:
            joined = self._joined(position, value, ref)
            if joined:
                return Zeros(argument, joined)
        if not self._idle[position].readers(ref, call.start):
            return Plain(None)
        kind = f"shape {trace.shapes[ref.index]}"
        if any(trace.shapes[self._stand(position, value)] == trace.shapes[ref.index] for _, value in given):
            kind += f" and {trace.dtypes[ref.index]}"
        why = f"{path} returns a tensor of {kind}, which nothing has that it is given"
        later = [index for index in self._idle[position].readers(ref, call.stop) if index not in removed]
        if later:
            why += f"; what reads it is written in a module that stays: {trace.operations[later[0]].site}"
        raise UnfitError(path, why)

    def _stand(self, position: int, value: TensorRef) -> int:
        """Returns the number of the tensor that a module is given for this one, with modules before it gone."""
        index = value.index
        while index in self._stands[position]:
            index = self._stands[position][index].index
        return index

    def _is_like(self, position: int, value: TensorRef, ref: TensorRef) -> bool:
        """Whether what a module is given has the shape and dtype of a tensor, with modules before it gone."""
        trace, index = self._analysis.recordings[position].trace, self._stand(position, value)
        return trace.shapes[index] == trace.shapes[ref.index] and trace.dtypes[index] == trace.dtypes[ref.index]

    def _joined(self, position: int, value: TensorRef, ref: TensorRef) -> int:
        """Returns how many first dims of what a module is given are one in a tensor; 0 if it is of another shape."""
        trace, index = self._analysis.recordings[position].trace, self._stand(position, value)
        shape, made = trace.shapes[index], trace.shapes[ref.index]
        count = len(shape) - len(made) + 1
        alike = trace.dtypes[index] == trace.dtypes[ref.index] and count > 1
        return count if alike and joined_shape(shape, count) == list(made) else 0


def _whole_paths(stub: Stub) -> tuple[str, ...]:
    return tuple(f"{stub.module}.{child}" for child in children_of(stub.result))

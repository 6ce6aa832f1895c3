"""Decoding recorded: what a model that returns a cache does in the calls that are given it.

A cut of widths that leaves every tensor of a cache its size is right in later calls as well. A branch is another thing:
a later call may read from a cache what only the branch put there, its length for one. So branches are found, taken out
and checked on recordings of all those calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.groups.analysis import Analysis, understood
from prunekit_core.groups.recording import Recording
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.calls import tensors_of
from prunekit_core.program.decoding import (
    SWITCH,
    Decoding,
    DecodingRunner,
    FirstCall,
    Key,
    Later,
    caches,
    call_of,
    held,
    parameters_of,
)
from prunekit_core.program.examples import Example
from prunekit_core.program.outputs import output_tensors
from prunekit_core.program.trace import Trace
from prunekit_core.record.listener import Listener
from prunekit_core.record.programs import Programs
from prunekit_core.record.recorder import try_to_record
from prunekit_core.record.shadow import Shadow

DECODING = "decoding"
"""The label of recordings of all calls."""
_WAYS = ((Later.SAME, Later.LAST), (Later.SAME,), (Later.LAST,))
"""What later calls are tried, in this order: a chunk and a token, or what of them the model can do."""


def with_decoding(analysis: Analysis, registry: Registry) -> Analysis:
    """Records, for each example on which a model returns a cache, the calls that are given it as well.

    Args:
        analysis: The analysed model.
        registry: Where op rules are found.

    Returns:
        An analysis in which these recordings follow the ones that there are, of which the outputs lack the cache; the
        same one where nothing is to be added. Where a model returns a cache and can't be called with it, `undecoded`
        says why.
    """
    if analysis.decoding or analysis.undecoded:
        return analysis
    return _Added(analysis, registry).analysis()


class _Added:
    def __init__(self, analysis: Analysis, registry: Registry) -> None:
        self._analysis, self._registry = analysis, registry
        self._why = ""

    def analysis(self) -> Analysis:
        known: dict[int, Decoding | None] = {}
        recorded: list[tuple[Trace, Example, bool | None]] = []
        later: list[tuple[Trace, Example, bool | None]] = []
        for recording in self._analysis.recordings:
            example = recording.example
            if id(example) not in known:
                known[id(example)] = decoding = self._decoding(recording)
                if decoding is not None:
                    later.append(self._recorded(example, decoding, recording.training))
            recorded.append(_shortened(recording, known[id(example)]))
        if self._why:
            return attrs.evolve(self._analysis, undecoded=self._why)
        if not later:
            return self._analysis
        old, shadow = self._analysis, self._analysis.shadow
        programs = Programs(shadow, old.swaps, (*recorded, *later), old.failed, ())
        return attrs.evolve(understood(programs, self._registry, old.declared), decoding=True)

    def _recorded(self, example: Example, decoding: Decoding, mode: bool | None) -> tuple[Trace, Example, bool | None]:
        patterns = (*example.free_outputs, *(f"*.{pattern}" for pattern in example.free_outputs))
        runner = DecodingRunner(example.runner, decoding)
        calls = attrs.evolve(example, runner=runner, free_outputs=patterns)
        shadow, rules = self._analysis.shadow, self._registry.op_rules
        shadow.rewind()
        trace, error = try_to_record(shadow, calls, rules, label=DECODING, training=mode)
        if error is not None:
            self._why = self._why or str(error.why)
        return trace, calls, mode

    def _decoding(self, recording: Recording) -> Decoding | None:
        """Finds how a model decodes on an example: by trying, as far as one of the ways runs."""
        search = _Search(self._analysis.shadow, recording, self._registry)
        found = search.found()
        self._why = self._why or search.why
        return found


class _Search:
    """Finds how a model takes what it returns, by running it."""

    def __init__(self, shadow: Shadow, recording: Recording, registry: Registry) -> None:
        self._shadow, self._recording, self._rules = shadow, recording, registry.op_rules
        self.why = ""

    def found(self) -> Decoding | None:
        given = self._run(_GivenRunner(self._recording.example), Listener())
        if not isinstance(given, _Given) or given.arguments is None:
            return None
        for switches in _switches(given.arguments, given.parameters):
            found = self._switched(given, switches)
            if found is not None or self.why:
                return found
        return None

    def _switched(self, given: _Given, switches: tuple[str, ...]) -> Decoding | None:
        first = _CachesRunner(self._recording.example, switches)
        places = self._run(first, Listener())
        if isinstance(places, str):
            return None  # it can't be switched on
        unfilled = [name for name, default in given.parameters.items() if default is None and not given.has(name)]
        named = tuple((key, str(key)) for key in places if key in unfilled)
        others = [key for key in places if not given.has(str(key))]  # it already is given what it returns there
        for handed in [named] if named else _matches(others, unfilled):
            why = ""
            for later in _WAYS:
                decoding = Decoding(switches, handed, later)
                reads = _ReadsCache(self._recording.example, decoding)
                result = self._run(reads, reads.listener)
                if not isinstance(result, str) and (named or reads.listener.read):
                    return decoding
                why = why or (result if isinstance(result, str) else "")
            if named:
                self.why = f"the model returns a cache ({named[0][1]}), and can't be called with it: {why}"
        return None

    def _run(self, runner: Any, listener: Listener) -> Any:
        """Runs a model; returns what it raised as text."""
        example = attrs.evolve(self._recording.example, runner=runner)
        self._shadow.rewind()
        try:
            self._shadow.run(example, listener, self._rules, training=self._recording.training)
        except Exception as error:  # whatever a model raises where it is called as it wasn't meant to be
            return f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            self._shadow.let_go()
        return runner.result


@attrs.frozen
class _Given:
    """What a model is called with.

    Attributes:
        arguments: By name; None where that isn't known.
        parameters: The parameters of its forward, with their defaults.
    """

    arguments: Mapping[str, Any] | None
    parameters: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether an argument is given, and not None."""
        return self.arguments is not None and self.arguments.get(name) is not None


@attrs.define(eq=False)
class _GivenRunner:
    """Notes which plain values a model is called with; holds no tensor."""

    example: Example
    result: _Given = attrs.field(init=False, default=_Given(None, {}))

    def __call__(self, model: Any, args: Any, kwargs: Any) -> None:
        given = call_of(self.example.runner, model, args, kwargs)
        plain = None if given is None else {name: _plain(value) for name, value in given.items()}
        self.result = _Given(
            plain, {name: parameter.default for name, parameter in parameters_of(model.forward).items()}
        )


@attrs.define(eq=False)
class _CachesRunner:
    """Notes where the outputs hold what may be a cache."""

    example: Example
    switches: tuple[str, ...]
    result: tuple[Key, ...] = attrs.field(init=False, default=())

    def __call__(self, model: Any, args: Any, kwargs: Any) -> None:
        given = call_of(self.example.runner, model, args, kwargs)
        if given is not None:
            outputs = model(**{**given, **dict.fromkeys(self.switches, True)})
            self.result = tuple(key for key, _ in caches(outputs))


@attrs.define(eq=False)
class _ReadsCache:
    """Decodes, and finds out whether a later call reads what it is handed."""

    example: Example
    decoding: Decoding
    listener: _Reads = attrs.field(init=False, factory=lambda: _Reads())
    result: tuple[()] = attrs.field(init=False, default=())

    def __call__(self, model: Any, args: Any, kwargs: Any) -> None:
        given = call_of(self.example.runner, model, args, kwargs)
        assert given is not None
        outputs = model(**self.decoding.inputs(given))
        self.listener.watched = [
            tensor for key, _ in self.decoding.handed for tensor in output_tensors(held(outputs, key))
        ]
        self.decoding.run(model, given, outputs)
        self.listener.watched = []


class _Reads(Listener):
    """Notes whether an operation reads one of some tensors."""

    def __init__(self) -> None:
        self.watched: list[torch.Tensor] = []
        self.read = False

    def operation(self, op: Any, module: str, arguments: Mapping[str, Any], outputs: Any) -> None:
        """Looks for them among the arguments."""
        if self.watched and not self.read:
            read = {id(tensor) for tensor in tensors_of(list(arguments.values()))}
            self.read = any(id(tensor) in read for tensor in self.watched)


def _plain(value: Any) -> Any:
    """Returns a value, or of a tensor or an object that there is one."""
    return value if value is None or isinstance(value, bool | int | float | str) else ...


def _switches(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Lists which arguments to set, so that a model returns a cache: none, or one that is off or left open."""
    values = {**parameters, **arguments}
    off = [name for name, value in values.items() if SWITCH in name and value is False]
    open_ones = [name for name, value in values.items() if SWITCH in name and value is None and name != SWITCH]
    return [(), *((name,) for name in (*off, *open_ones))]


def _matches(places: Sequence[Key], unfilled: Sequence[str]) -> Iterator[tuple[tuple[Key, str], ...]]:
    """Yields which argument may take what the outputs hold at a place, for each."""
    likely = sorted(unfilled, key=lambda name: SWITCH not in name)
    for key, name in itertools.product(places, likely):
        yield ((key, name),)


def _shortened(recording: Recording, decoding: Decoding | None) -> tuple[Trace, Example, bool | None]:
    """Returns a recording as it is without the cache among the outputs."""
    trace, example = recording.trace, recording.example
    if decoding is None:
        return trace, example, recording.training
    keys = [str(key) for key, _ in decoding.handed]
    left = [(name, ref) for name, ref in zip(trace.names, trace.results, strict=True) if name.split(".")[0] not in keys]
    names, results = tuple(name for name, _ in left), tuple(ref for _, ref in left)
    runner = FirstCall(example.runner, decoding.handed)
    return (
        attrs.evolve(trace, names=names, results=results),
        attrs.evolve(example, runner=runner),
        recording.training,
    )

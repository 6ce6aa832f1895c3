"""Decoding recorded: what a model that returns a cache does in the calls that are given it.

A cut of widths that leaves every tensor of a cache its size is right in later calls as well. A branch is another thing:
a later call may read from a cache what only the branch put there, its length for one. So branches are found, taken out
and checked on recordings of all those calls.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.groups.analysis import Analysis, understood_again
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
from prunekit_core.program.examples import Example, run_model
from prunekit_core.program.outputs import output_tensors
from prunekit_core.program.trace import Trace
from prunekit_core.record.listener import Listener
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


_Recorded = tuple[Trace, Example, bool | None]
"""A recorded program, the example that it was recorded on, and the mode."""


class _Added:
    def __init__(self, analysis: Analysis, registry: Registry) -> None:
        self._analysis, self._registry = analysis, registry

    def analysis(self) -> Analysis:
        known: dict[int, _Found | None] = {}
        recorded: list[_Recorded] = []
        for recording in self._analysis.recordings:
            example = recording.example
            if example.counts is not None:  # of the calls of a workload some decode already
                first = next(filter(None, known.values()), None)
                recorded.append(_shortened(recording, None if first is None else first.decoding))
                continue
            if id(example) not in known:
                search = _Search(self._analysis.shadow, recording, self._registry)
                known[id(example)] = search.found()
                if search.why:
                    return attrs.evolve(self._analysis, undecoded=search.why)
            found = known[id(example)]
            recorded.append(_shortened(recording, None if found is None else found.decoding))
        later = [found.recorded for found in known.values() if found is not None]
        if not later:
            return self._analysis
        decoding = understood_again(self._analysis, (*recorded, *later), self._registry)
        return attrs.evolve(decoding, decoding=True)


@attrs.frozen(eq=False)
class _Found:
    """How a model decodes on an example, and the recording of that."""

    decoding: Decoding
    recorded: _Recorded


class _Search:
    """Finds how a model takes what it returns, by trying, and records it.

    Attributes:
        why: Why a model that returns a cache for one of its arguments can't be called with it.
    """

    def __init__(self, shadow: Shadow, recording: Recording, registry: Registry) -> None:
        self._shadow, self._recording, self._rules = shadow, recording, registry.op_rules
        self.why = ""

    def found(self) -> _Found | None:
        given = self._run(_GivenRunner(self._recording.example), Listener())
        if not isinstance(given, _Given) or given.arguments is None:
            return None
        unfilled = [name for name, default in given.parameters.items() if default is None and not given.has(name)]
        unnamed: list[tuple[tuple[str, ...], list[Key]]] = []
        for switches in _switches(given.arguments, given.parameters) if unfilled else ():
            places = self._places(switches)
            named = tuple((key, str(key)) for key in places if key in unfilled)
            if named:
                return self._named(switches, named)
            unnamed.append((switches, [key for key in places if not given.has(str(key))]))
        for switches, others in unnamed:  # it already is given what it returns elsewhere
            found = self._unnamed(switches, list(_matches(others, unfilled)))
            if found is not None:
                return found
        return None

    def _places(self, switches: tuple[str, ...]) -> tuple[Key, ...]:
        """Finds where the outputs hold what may be a cache."""
        example, names = self._recording.example, self._recording.trace.names
        if not switches and example.runner is run_model and not any("." in name for name in names):
            return ()  # as recorded, they are tensors
        places = self._run(_CachesRunner(example, switches), Listener())
        return () if isinstance(places, str) else tuple(places)  # where it can't be switched on

    def _named(self, switches: tuple[str, ...], handed: tuple[tuple[Key, str], ...]) -> _Found | None:
        """Records calls that are given what is returned under the name of an argument."""
        reasons = []
        for later in _WAYS:
            found, why = self._recorded(Decoding(switches, handed, later))
            if found is not None:
                return found
            reasons.append(why)
        self.why = f"the model returns a cache ({handed[0][1]}), and can't be called with it: {reasons[0]}"
        return None

    def _unnamed(self, switches: tuple[str, ...], candidates: Sequence[tuple[tuple[Key, str], ...]]) -> _Found | None:
        """Records calls that are given what an argument takes, which shows in what they read."""
        while candidates:
            reads = _ReadsCache(self._recording.example, [Decoding(switches, one, _WAYS[0]) for one in candidates])
            place = self._run(reads, reads.listener)
            if not isinstance(place, int):
                return None
            for later in _WAYS:
                found, _ = self._recorded(Decoding(switches, candidates[place], later))
                if found is not None:
                    return found
            candidates = candidates[place + 1 :]
        return None

    def _recorded(self, decoding: Decoding) -> tuple[_Found | None, str]:
        """Records all calls; returns the recording, or None and why one of them raised."""
        example, mode = self._recording.example, self._recording.training
        patterns = (*example.free_outputs, *(f"*.{pattern}" for pattern in example.free_outputs))
        runner = DecodingRunner(example.runner, decoding)
        calls = attrs.evolve(example, runner=runner, free_outputs=patterns, counts=None)
        self._shadow.rewind()
        trace, error = try_to_record(self._shadow, calls, self._rules, label=DECODING, training=mode)
        if error is not None:
            return None, str(error.why)
        return _Found(decoding, (trace, calls, mode)), ""

    def _run(self, runner: Any, listener: Listener) -> Any:
        """Runs a model; returns what it raised as text."""
        example = attrs.evolve(self._recording.example, runner=runner)
        self._shadow.rewind()
        why = ""
        try:
            self._shadow.run(example, listener, self._rules, training=self._recording.training)
        except Exception as error:  # whatever a model raises where it is called as it wasn't meant to be
            traceback.clear_frames(error.__traceback__)
            why = f"{type(error).__name__}: {str(error)[:200]}"
        self._shadow.let_go()
        return why or runner.result


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
    """Finds the first of some ways to decode in which a later call reads what it is handed.

    Those of which no call does leave the outputs of the first call as they were, so that it is made once.
    """

    example: Example
    ways: Sequence[Decoding]
    listener: _Reads = attrs.field(init=False, factory=lambda: _Reads())
    result: int | None = attrs.field(init=False, default=None)

    def __call__(self, model: Any, args: Any, kwargs: Any) -> None:
        given = call_of(self.example.runner, model, args, kwargs)
        assert given is not None
        outputs = model(**self.ways[0].inputs(given))
        for place, way in enumerate(self.ways):
            self.listener.watched = [tensor for key, _ in way.handed for tensor in output_tensors(held(outputs, key))]
            for decoding in (way, attrs.evolve(way, later=(Later.LAST,))):
                try:
                    decoding.run(model, given, outputs)
                except Exception as error:  # whatever a model raises where it is called as it wasn't meant to be
                    traceback.clear_frames(error.__traceback__)
                else:
                    break
            self.listener.watched = []
            if self.listener.read:
                self.result = place
                return


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
    handed = tuple(ref for ref in dict.fromkeys(trace.results) if ref not in results)
    runner = FirstCall(example.runner, decoding.handed)
    return (
        attrs.evolve(trace, names=names, results=results, handed=handed),
        attrs.evolve(example, runner=runner),
        recording.training,
    )

"""The calls of modules in recorded programs: which operations run in them, what they are given and what they return."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.recording import Recording
from prunekit_core.modules.absent import Given
from prunekit_core.program.rules import RuleTable
from prunekit_core.record.decisions import Choices
from prunekit_core.record.recorder import TraceBuilder


@attrs.frozen
class Thing:
    """An object that is no tensor and no plain value, such as a cache; within one call, equal is identical.

    Attributes:
        number: Its identity while the call ran.
        kind: The name of its class.
    """

    number: int
    kind: str


@attrs.frozen(eq=False)
class Call:
    """One call of a module in one recording.

    Attributes:
        order: How many calls began before it.
        start, stop: The run of operations that ran in it, those of modules that it called included.
        arguments: What it was given: each argument with its value, tensors as `TensorRef`, objects as `Thing`.
        result: What it returned, likewise, in the same tuples and lists.
    """

    order: int
    start: int
    stop: int
    arguments: tuple[tuple[Given, Any], ...]
    result: Any


Calls = Mapping[str, Sequence[Call]]
"""Path of each module that was called to its calls, in order."""


_KNOWN: weakref.WeakKeyDictionary[Analysis, tuple[RuleTable, list[Calls] | None]] = weakref.WeakKeyDictionary()
"""What was noted of an analysis: choosing branches takes out many sets, and each would run every program again."""


def calls_of(analysis: Analysis, rules: RuleTable) -> list[Calls] | None:
    """Runs every recorded program once more, the first time, and notes the calls of modules.

    Args:
        analysis: The analysed model.
        rules: The op rules.

    Returns:
        The calls in each recording; None where a program doesn't run the same operations again.
    """
    known = _KNOWN.get(analysis)
    if known is None or known[0] is not rules:
        known = _KNOWN[analysis] = (rules, _all_calls(analysis, rules))
    return known[1]


def _all_calls(analysis: Analysis, rules: RuleTable) -> list[Calls] | None:
    analysis.shadow.rewind()
    found = []
    for recording in analysis.recordings:
        calls = _calls(analysis, recording, rules)
        if calls is None:
            return None
        found.append(calls)
    return found


def _calls(analysis: Analysis, recording: Recording, rules: RuleTable) -> Calls | None:
    calls = _watched(analysis, recording, rules)
    analysis.shadow.let_go()  # once nothing here holds what the run made
    return calls


def _watched(analysis: Analysis, recording: Recording, rules: RuleTable) -> Calls | None:
    shadow = analysis.shadow
    watch = _Watch(recording.trace.label, keep_alive=shadow.fake_mode is not None, choices=analysis.choices)
    prepare = {
        (path, "forward"): watch.watching(path, vars(module)["forward"]) for path, module in shadow.modules.items()
    }
    outputs = shadow.run(recording.example, watch, rules, training=recording.training, prepare=prepare)
    trace = watch.finish(outputs)
    pairs = zip(trace.operations, recording.trace.operations, strict=False)
    same = all(new.op is old.op and new.outputs == old.outputs for new, old in pairs)
    return watch.calls if same and len(trace.operations) == len(recording.trace.operations) else None


class _Watch(TraceBuilder):
    """Records a program, and where calls of modules start and end."""

    def __init__(self, label: str, *, keep_alive: bool, choices: Choices | None) -> None:
        super().__init__(label, keep_alive=keep_alive, choices=choices)
        self.calls: dict[str, list[Call]] = {}
        self._begun = 0

    def watching(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the forward of a module."""
        names = _parameter_names(forward)

        def watched(*args: Any, **kwargs: Any) -> Any:
            order, start, given = self._begun, len(self._operations), self._given(names, args, kwargs)
            self._begun += 1
            result = forward(*args, **kwargs)
            call = Call(order, start, len(self._operations), given, self._noted(result))
            self.calls.setdefault(path, []).append(call)
            return result

        watched.__wrapped__ = forward  # type: ignore[attr-defined]  # inspect.signature reads the original's
        return watched

    def _given(
        self, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Given, Any], ...]:
        by_place = [(names[place] if place < len(names) else "", place) for place in range(len(args))]
        by_name = [(name, names.index(name) if name in names else -1) for name in kwargs]
        values = [self._noted(value) for value in (*args, *kwargs.values())]
        return tuple((Given(*place), value) for place, value in zip((*by_place, *by_name), values, strict=True))

    def _noted(self, value: Any) -> Any:
        """Writes a value down, every known tensor as its reference."""
        if isinstance(value, torch.Tensor):
            return self.table.get(value)
        if type(value) in (tuple, list):
            return type(value)(self._noted(item) for item in value)
        if value is None or type(value) in (bool, int, float, str):
            return value
        return Thing(id(value), type(value).__name__)


def _parameter_names(forward: Callable[..., Any]) -> list[str]:
    """Names the parameters of a function that may be passed by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        found = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return []
    return [parameter.name for parameter in found if parameter.kind in kinds]

"""Latency on this machine: times of single operations at several sizes, corrected by measuring the pruned model."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import (
    Analysis,
    ArgumentError,
    Compiled,
    CostModel,
    Example,
    Graph,
    Operation,
    Recording,
    Registry,
    Sizes,
    SymbolicSizer,
    as_polynomial,
    compile_polynomials,
    group_sizes,
    multiplied,
    size_of,
)
from prunekit_plugins.budgets.counts import FORMULAS, Shapes
from prunekit_plugins.budgets.inference.latency_table import LatencyTable, table_given
from prunekit_plugins.budgets.inference.workload import Workload
from prunekit_plugins.budgets.timetable import Timetable
from prunekit_plugins.measure import accelerator_of, evaluating, timed

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Fractions of the units at which every operation is measured; between them its time is interpolated."""

_NOWHERE = torch.device("meta")
"""Where arguments are made of which only shapes and dtypes are asked."""

ROUNDS = 10
WARM_UP = 2

_watcher: contextvars.ContextVar[Callable[[int, int], None] | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(progress: Callable[[int, int], None]) -> Iterator[None]:
    """Has a function called while operations are measured, with how many are done and how many there are."""
    token = _watcher.set(progress)
    try:
        yield
    finally:
        _watcher.reset(token)


@attrs.frozen(eq=False)
class _Job:
    """An operation that takes time, and what to measure; it runs so many times."""

    recording: Recording
    operation: Operation
    times: float = 1.0

    def groups(self) -> list[str]:
        """Names the groups that the operation's tensors are made of."""
        names: dict[str, None] = {}
        for ref in (*self.operation.references(), *self.operation.outputs):
            for layout in self.recording.live.get(ref.index, ()):
                names.update(dict.fromkeys(name for term in as_polynomial(size_of(layout)).terms for name in term))
        return list(names)

    def work(self, sizer: SymbolicSizer) -> Any:
        """What its time grows with: multiply-accumulates where there are any, else elements read and written."""
        formula = FORMULAS.get(self.operation.name.split(".")[0])
        if formula is not None:
            return as_polynomial(formula(Shapes(self.recording, self.operation, sizer)))
        refs = dict.fromkeys(ref.index for ref in (*self.operation.references(), *self.operation.outputs))
        return sum((multiplied(self.recording.shape(index, sizer)) for index in refs), as_polynomial(0))

    def arguments(self, sizes: Sizes, device: torch.device) -> tuple[dict[str, Any], str]:
        """Makes real arguments for some group sizes, and the key that says what they are."""
        recording, trace = self.recording, self.recording.trace

        def number(layout: Any) -> int:
            polynomial = as_polynomial(size_of(layout))
            total = 0
            for term, coefficient in polynomial.terms.items():
                for name in term:
                    coefficient *= sizes[name]
                total += coefficient
            return total

        made: dict[int, torch.Tensor] = {}

        def value(given: Any) -> Any:
            index = getattr(given, "index", None)
            if isinstance(index, int):
                if index not in made:
                    made[index] = _tensor(recording.shape(index, number), trace.dtypes[index], device)
                return made[index]
            return [value(item) for item in given] if isinstance(given, list) else given

        known = {argument.name for argument in self.operation.op._schema.arguments}
        found = {name: value(given) for name, given in self.operation.arguments.items() if name in known}
        out = recording.shape(self.operation.outputs[0].index, number)
        for name in ("shape", "size"):
            if isinstance(found.get(name), list) and len(found[name]) == len(out):
                found[name] = list(out)
        if isinstance(found.get("normalized_shape"), list):
            found["normalized_shape"] = list(out[-len(found["normalized_shape"]) :])
        for wanted in recording.expectations.get(self.operation.index, ()):
            name, total = wanted.argument, sum(map(number, wanted.pieces)) + wanted.offset
            if total == sum(piece.size for piece in wanted.pieces) + wanted.offset:
                continue
            if wanted.position is None:
                found[name] = total
            else:
                found[name] = [total if place == wanted.position else item for place, item in enumerate(found[name])]
        return found, f"{self.operation.name}({', '.join(f'{name}={_word(item)}' for name, item in found.items())})"

    def run(self, arguments: dict[str, Any]) -> Callable[[], Any]:
        """Returns the call of the operation on its arguments."""
        schema = self.operation.op._schema.arguments
        args = [arguments[a.name] for a in schema if not a.kwarg_only]
        kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        return lambda: self.operation.op(*args, **kwargs)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, device=device)


def _word(value: Any) -> str:
    if isinstance(value, torch.device):
        return "device"  # measured on one, looked up for another
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    return str(value)


def _jobs(recording: Recording, times: float) -> list[_Job]:
    """Lists the operations that do something: no views, and nothing that isn't an operation of PyTorch's."""
    trace = recording.trace
    return [
        _Job(recording, operation, times)
        for operation in trace.operations
        if isinstance(operation.op, torch._ops.OpOverload)
        and operation.outputs
        and operation.references()
        and not all(ref.index in trace.shares for ref in operation.outputs)
    ]


def _to_measure(analysis: Analysis) -> tuple[list[_Job], list[dict[str, int]]]:
    """What is measured: the operations, and the sizes of groups."""
    jobs = [job for recording, times in analysis.counted for job in _jobs(recording, times)]
    groups = group_sizes(analysis).items()
    return jobs, [{n: max(1, round(size * fraction)) for n, size in groups} for fraction in FRACTIONS]


def _at_points(
    jobs: list[_Job], points: list[dict[str, int]], taken: Callable[[_Job, Sizes, str], float | None]
) -> torch.Tensor:
    """Returns the seconds of all operations at all points: tensor ``[operations, points]``, float64.

    Args:
        jobs: The operations.
        points: The sizes of groups, ascending.
        taken: Returns what an operation takes at a point, by its key too; None if nothing is known from there on.
    """
    progress = _watcher.get()
    found = torch.zeros(len(jobs), len(points), dtype=torch.double, device="cpu")
    for number, job in enumerate(jobs):
        varies = bool(job.groups())
        for place in reversed(range(len(points))):
            if not varies and place + 1 < len(points):
                found[number, place] = found[number, place + 1]
                continue
            seconds = taken(job, points[place], job.arguments(points[place], _NOWHERE)[1])
            if seconds is None:
                break
            found[number, place] = seconds
        if progress is not None:
            progress(number + 1, len(jobs))
    return found


def _read(jobs: list[_Job], points: list[dict[str, int]], table: LatencyTable) -> torch.Tensor:
    """Reads the seconds of all operations at all points from a table.

    Raises:
        CheckpointError: It lacks some.
    """
    missing: list[str] = []
    found = _at_points(jobs, points, lambda job, point, key: table.look_up(key, missing))
    if missing:
        raise table.refuse(missing)
    return found


class LatencyCost(CostModel):
    """Seconds of one forward on the (first) example inputs, in eval and inference mode, on the device of the model.

    Every operation of the recording is run by itself, with all its groups at the fractions `FRACTIONS` of their units,
    and its time is interpolated in its multiply-accumulates (or in the elements that it reads and writes). The sum of
    all operations is then corrected by the time that the model takes, and a plan is measured as a whole.

    Args:
        folder: Where measurements are kept; None for the user's cache folder.
    """

    unit = "ms"
    previewed = False

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def measured(self) -> bool:  # type: ignore[override]  # CostModel's is an attribute
        """Whether plans are timed: not where a table says what operations take elsewhere."""
        return table_given() is None

    def compile(self, analysis: Analysis) -> Compiled:
        """Measures the operations that aren't in the table yet, and makes their sum a function of group sizes."""
        table = table_given()
        device = _NOWHERE if table is not None else _device(analysis)
        (jobs, points), groups, sizer = _to_measure(analysis), group_sizes(analysis), SymbolicSizer()
        evaluate = compile_polynomials([job.work(sizer) for job in jobs], groups)
        found = self._measured(jobs, points, device) if table is None else _read(jobs, points, table)
        seconds = found.cummax(1).values
        factor = 1.0 if table is None else table.factor
        times = torch.tensor([factor * job.times for job in jobs], dtype=torch.double, device="cpu")
        works = torch.stack([evaluate(point) for point in points], 1).double()
        rows = torch.arange(len(jobs), device="cpu")
        steps = (works[:, 1:] - works[:, :-1]).clamp(min=1)

        def cost(sizes: Sizes) -> float:
            work = evaluate(sizes).double()
            place = ((work[:, None] > works).sum(1) - 1).clamp(0, len(FRACTIONS) - 2)
            share = ((work - works[rows, place]) / steps[rows, place]).clamp(0, 1)
            low, high = seconds[rows, place], seconds[rows, place + 1]
            return float((times * (low + (high - low) * torch.where(steps[rows, place] > 1, share, 1.0))).sum())

        return cost

    def _measured(self, jobs: list[_Job], points: list[dict[str, int]], device: torch.device) -> torch.Tensor:
        """Returns the seconds of all operations at all points: tensor ``[operations, points]``, float64.

        An operation that can't be run by itself counts nothing here; the correction makes up for it.
        """
        table = Timetable(device, self._folder)

        def taken(job: _Job, point: Sizes, key: str) -> float | None:
            try:
                if key not in table.seconds:
                    table.measure(key, job.run(job.arguments(point, device)[0]))
            except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                return None
            return table.seconds[key]

        try:
            with torch.inference_mode():
                return _at_points(jobs, points, taken)
        finally:
            table.save()

    def table(self, analysis: Analysis, model: nn.Module) -> LatencyTable:
        """Measures the operations of a model, and the model as a whole, for a table that is used elsewhere."""
        seconds: dict[str, float] = {}
        alone: set[str] = set()
        predicted = self.compile(analysis)({})
        device = _device(analysis)
        known = Timetable(device, self._folder)

        def noted(job: _Job, point: Sizes, key: str) -> float | None:
            if key in known.seconds:
                seconds[key] = known.seconds[key]
            else:
                alone.add(key)
            return seconds.get(key)

        _at_points(*_to_measure(analysis), noted)
        taken, _ = self.measure(model, model, analysis.counted[0][0].example)
        return LatencyTable(known.machine, seconds, frozenset(alone), taken / predicted)

    def measure(self, before: nn.Module, after: nn.Module, example: Example) -> tuple[float, float]:
        """Measures two models in turns; see `CostModel.measure`."""
        models = [before, after]
        with evaluating(models):
            run = example.timed or example.runner
            runs = [lambda model=model: run(model, example.args, example.kwargs) for model in models]
            first, second = timed(runs, rounds=ROUNDS, warm_up=WARM_UP, device=accelerator_of(models))
        return first.median, second.median

    def absolute(self, value: float | str) -> float:
        """Reads a number of milliseconds, or a text such as ``"20ms"``, ``"0.02s"`` or ``"800us"``."""
        if not isinstance(value, str):
            return float(value) / 1e3
        found = re.fullmatch(r"\s*([\d.]+)\s*(us|ms|s)\s*", value)
        if found is None:
            raise ValueError(f"no time: {value!r}")
        return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]

    def text(self, cost: float) -> str:
        """Writes seconds as milliseconds."""
        return f"{cost * 1e3:.3g} ms"


def _device(analysis: Analysis) -> torch.device:
    if not analysis.shadow.valued:
        raise ArgumentError("The latency of a model without values can't be measured.", where="the meta device")
    return next((tensor.device for tensor in analysis.shadow.tensors().values()), torch.device("cpu"))


latency = LatencyCost()
"""Seconds of one forward on this machine; see `LatencyCost`."""


def write_latency_table(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    workload: Mapping[str, int] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    free_outputs: Sequence[str] = (),
    registry: Registry | None = None,
) -> LatencyTable:
    """Measures the operations of a model on the device that it is on, for ``prune(latency_table=path)`` elsewhere.

    Args:
        model: The model, not pruned.
        example_inputs: Inputs of the shapes that will be pruned with.
        path: The file.
        workload: The workload that will be pruned with; see `prune`.
        forward_fn: See `prune`.
        free_outputs: Outputs that may lose units, see `prune`: then the table is for cuts with and without them.
        registry: Where plugins are found; None for the default registry.

    Returns:
        What was written.

    Raises:
        ArgumentError: The workload is wrong, or the model has no values.
    """
    counted = () if workload is None else Workload.of(workload).examples(example_inputs, forward_fn)

    def measured(free: Sequence[str]) -> LatencyTable:
        graph = Graph.of(
            model,
            example_inputs,
            more_inputs=counted,
            forward_fn=forward_fn,
            free_outputs=free,
            registry=registry,
        )
        return latency.table(graph.analysis, graph.model)

    table = measured(())
    if free_outputs:  # operations on what may shrink then have other sizes as well
        table = table.with_more(measured(tuple(free_outputs)))
    table.save(path)
    return table

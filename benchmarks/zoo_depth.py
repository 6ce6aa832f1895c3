"""Branches of one model of the zoo, in a process of its own: each is taken out alone, and a random half together.

`zoo.py --depth` starts it. What is left is compared with the original run by plain PyTorch with the operands of the
sums set to zero while it runs. Nothing of prunekit's own comparison takes part: sums are found in the running program
by the module that adds and by counting what it adds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
import zoo_models
import zoo_worker
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunekit as pk
from prunekit_core.program.decoding import Decoding, DecodingRunner, Later
from prunekit_core.program.outputs import output_tensors
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.depth.search import structure_of

STEPS = 10
"""Tokens that are decoded after the first call."""
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
"""Largest error that counts as exact, relative to the largest value of each output."""
SEEN = 1e-4
"""Change of the outputs by a branch below which its comparison says little."""
Key = tuple[str, str]
"""Path of the module that adds, and the name of the operation."""


class NotLocatedError(Exception):
    """The running program doesn't add as often as the recorded one did, so that its sums can't be told apart."""


@attrs.frozen
class Off:
    """An operand that is zero.

    Attributes:
        place: Which one of the operations with its `Key` adds it, counted in one call of the model.
        argument: Name of the argument.
    """

    place: int
    argument: str


class SwitchedOff(TorchDispatchMode):
    """Runs a model with operands of sums set to zero.

    Args:
        model: The model; it is called by `call` only. Its forwards are wrapped.
        off: What is zero.
        counts: How many operations of each `Key` one call runs.
    """

    def __init__(self, model: nn.Module, off: Mapping[Key, Collection[Off]], counts: Mapping[Key, int]) -> None:
        super().__init__()
        self._model, self._off, self._counts = model, off, counts
        self._running = [""]
        self._ran: Counter[Key] = Counter()
        self._calls = 0
        for path, module in model.named_modules():
            vars(module)["forward"] = self._watched(path, module.forward)

    def _watched(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            outermost = path == "" and len(self._running) == 1
            if outermost:
                self._ran.clear()
            self._running.append(path)
            try:
                result = forward(*args, **kwargs)
            finally:
                self._running.pop()
            if outermost:
                self._check()
            return result

        return watched

    def _check(self) -> None:
        for key in self._off:
            if self._ran[key] != self._counts[key]:
                raise NotLocatedError(f"{key[1]} in {key[0] or 'the model'}: {self._ran[key]}, not {self._counts[key]}")

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, with zeros where something is off."""
        kwargs = kwargs or {}
        key = (self._running[-1], op.name())
        if key in self._off:
            place = self._ran[key]
            self._ran[key] += 1
            for one in self._off[key]:
                if one.place == place:
                    args, kwargs = _zeroed(op, args, kwargs, one.argument)
        return op(*args, **kwargs)


def _zeroed(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = list(args), dict(kwargs)
    schema = op._schema.arguments
    place = next(index for index, argument in enumerate(schema) if argument.name == name)
    written = schema[place].alias_info is not None and schema[place].alias_info.is_write
    value = args[place] if place < len(args) else kwargs[name]
    zero = value.zero_() if written else torch.zeros_like(value)
    if place < len(args):
        args[place] = zero
    else:
        kwargs[name] = zero
    return args, kwargs


def sums_off(graph: pk.Graph, names: Collection[str]) -> tuple[dict[Key, list[Off]], dict[Key, int]]:
    """Says which operands are zero without some branches, in terms of a running model, and how often each key runs."""
    position = next(k for k, one in enumerate(graph.branch_analysis.recordings) if not one.training)
    ran: Counter[Key] = Counter()
    places: dict[int, tuple[Key, int]] = {}
    for operation in graph.branch_analysis.recordings[position].trace.operations:
        key = (operation.module, operation.name)
        places[operation.index] = key, ran[key]
        ran[key] += 1
    off: dict[Key, list[Off]] = {}
    for branch in graph.branches():
        for one in branch.sums if branch.name in names else ():
            if one.recording == position:
                key, place = places[one.operation]
                off.setdefault(key, []).append(Off(place, one.argument))
    return off, dict(ran)


@attrs.frozen(eq=False)
class Runs:
    """How a model is run, original or not.

    Attributes:
        inputs: What it is called with.
        decoding: How it goes on with its cache; None where it has none.
    """

    inputs: Any
    decoding: Decoding | None

    @classmethod
    def of(cls, graph: pk.Graph, inputs: Any) -> Runs:
        """Returns how a model is run: with a cache, a first call and some steps."""
        runners = [one.example.runner for one in graph.branch_analysis.recordings]
        found = next((runner.decoding for runner in runners if isinstance(runner, DecodingRunner)), None)
        if found is None or not isinstance(inputs, dict):
            return cls(inputs, None)
        usual = tuple(later for later in found.later if later is Later.LAST) and (Later.LAST,) * STEPS
        return cls(inputs, attrs.evolve(found, later=usual or found.later))

    def possible(self, model: nn.Module) -> Runs:
        """Returns the runs with as many steps as the model itself can take: some have few positions."""
        later = () if self.decoding is None else self.decoding.later
        for count in range(len(later), 0, -1):
            runs = attrs.evolve(self, decoding=attrs.evolve(self.decoding, later=later[:count]))
            with contextlib.suppress(RuntimeError, IndexError, ValueError):
                plain(model, runs)
                return runs
        return self

    def __call__(self, model: nn.Module) -> list[torch.Tensor]:
        """Returns all outputs of all calls."""
        torch.manual_seed(0)
        random.seed(0)
        inputs = copy.deepcopy(self.inputs)
        outputs = zoo_worker.call(model, inputs) if self.decoding is None else self.decoding.run(model, inputs)
        return output_tensors(outputs)


def without_gradients(run: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    """Runs without gradients where a program can do that, and else with them: some take a shorter way without."""
    with torch.no_grad(), contextlib.suppress(NotLocatedError, RuntimeError):
        return run()
    return [tensor.detach() for tensor in run()]


def masked(original: nn.Module, graph: pk.Graph, names: Collection[str], runs: Runs) -> list[torch.Tensor]:
    """Runs the original with the operands of branches set to zero."""
    off, counts = sums_off(graph, names)

    def run() -> list[torch.Tensor]:
        model = check_recordable(copy.deepcopy(original))
        with SwitchedOff(model, off, counts):
            return runs(model)

    return without_gradients(run)


def plain(model: nn.Module, runs: Runs) -> list[torch.Tensor]:
    """Runs a copy of a model."""
    return without_gradients(lambda: runs(copy.deepcopy(model)))


def difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The largest error relative to the largest value of each output; infinite where shapes differ."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return math.inf
    errors = [0.0]
    for a, b in zip(expected, found, strict=True):
        if a.numel() and not torch.equal(a, b):
            wide = torch.complex128 if a.is_complex() else torch.float64
            a, b = a.to(wide), b.to(wide)
            known = ~(a.isnan() & b.isnan()) & (a != b)
            gap, size = (a - b).abs()[known], a[a.isfinite()].abs()
            errors.append(float(gap.max() / size.max().clamp(min=1e-30)) if len(gap) and len(size) else 0.0)
    return max(math.inf if math.isnan(error) else error for error in errors)


@attrs.frozen(eq=False)
class Trial:
    """A model whose branches are taken out.

    Attributes:
        original: The model.
        graph: Its graph.
        runs: How it is run.
        whole: Its own outputs.
    """

    original: nn.Module
    graph: pk.Graph
    runs: Runs
    whole: Sequence[torch.Tensor]

    def alone(self, name: str) -> dict[str, Any]:
        """Takes one branch out."""
        return {"branch": name, **self._tried(lambda: self.graph.plan_without([name]))}

    def half(self) -> dict[str, Any]:
        """Takes a random half out, as a user would: those that the program can't go on without are given back."""
        left = dict[str, str]()

        def plan() -> pk.Plan:
            options: dict[str, Any] = {"branch_ratio": 0.5, "branch_importance": "random", "verify": "never"}
            model = copy.deepcopy(self.original)
            result = pk.prune(model, self.runs.inputs, global_pruning=True, **options)
            left.update(result.report.branches)
            return result.plan

        found = self._tried(plan)
        back = sorted({text for text in left.values() if text.startswith("given back")})
        return {**found, "given_back": sum(text in back for text in left.values()), "given_back_for": back[:5]}

    def _tried(self, make: Callable[[], pk.Plan]) -> dict[str, Any]:
        began = time.process_time()
        try:
            plan = make()
        except pk.PrunekitError as error:
            return {"verdict": "refused", "why": str(error.why or error.headline)[:400], "s": _since(began)}
        except Exception as error:
            traceback.print_exc()
            return {"verdict": "crash", "why": f"{type(error).__name__}: {str(error)[:300]}", "s": _since(began)}
        seconds = _since(began)
        try:
            return {"count": len(plan.absent), "s": seconds, **self._compared(plan)}
        except Exception as error:
            traceback.print_exc()
            return {"verdict": "crash", "why": f"{type(error).__name__}: {str(error)[:300]}", "s": seconds}

    def _compared(self, plan: pk.Plan) -> dict[str, Any]:
        small = plan.apply(copy.deepcopy(self.original))
        try:
            expected = masked(self.original, self.graph, plan.absent, self.runs)
        except NotLocatedError as error:
            check = pk.check_exact(self.original, small, plan, self.runs.inputs)
            return {"verdict": "exact" if check.exact else "wrong", "error": check.error, "own": str(error)}
        error, seen = difference(expected, plain(small, self.runs)), difference(self.whole, expected)
        found = {"error": error, "dtype": "float32", "seen": seen}
        if error <= TOLERANCE[torch.float32]:
            return {"verdict": "exact", **found}
        return {"verdict": "wrong", **found, **self._in_double(plan)}

    def _in_double(self, plan: pk.Plan) -> dict[str, Any]:
        if plain(self.original, self.runs) and difference(self.whole, plain(self.original, self.runs)):
            return {"verdict": "random", "why": "the original doesn't return the same twice"}
        try:
            with zoo_worker.double_precision():
                double = copy.deepcopy(self.original).double()
                runs = attrs.evolve(self.runs, inputs=zoo_worker.cast(self.runs.inputs, torch.float64))
                expected = masked(double, self.graph, plan.absent, runs)
                error = difference(expected, plain(plan.apply(copy.deepcopy(double)), runs))
                found: dict[str, Any] = {"error": error, "dtype": "float64"}
                exact = error <= TOLERANCE[torch.float64]
                if not exact and error < zoo_worker.CHAOS:
                    found["rounding"] = zoo_worker.rounding(double, runs.inputs)
                    exact = error <= zoo_worker.ROUNDINGS * found["rounding"]
        except Exception as error:  # kernels that have no double precision
            return {"float64": f"{type(error).__name__}: {str(error)[:200]}"}
        return {**found, "verdict": "exact" if exact else "wrong"}


def _since(began: float) -> float:
    return round(time.process_time() - began, 3)


def chosen(names: Sequence[str], most: int) -> list[str]:
    """Lists the branches to take out alone: all, or, of more than ``most``, the first and another of each structure."""
    if len(names) <= most:
        return list(names)
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(structure_of(name), []).append(name)
    generator = random.Random(0)
    found = [group[0] for group in alike.values()]
    found += [generator.choice(group[1:]) for group in alike.values() if len(group) > 1]
    found = found[:most]
    rest = [name for name in names if name not in found]
    found += generator.sample(rest, max(0, most - len(found)))
    return [name for name in names if name in found]


def measure(family: str, name: str, most: int) -> None:
    """Prints what is known about one model as JSON lines."""
    torch.manual_seed(0)
    tell = zoo_worker.tell
    tell(ran=False)
    example = zoo_models.awake(zoo_models.FAMILIES[family].build(name))
    model, inputs = example.model.eval(), example.inputs
    zoo_worker.call(copy.deepcopy(model), copy.deepcopy(inputs))
    tell(ran=True, refused_for=example.refused, params=sum(p.numel() for p in model.parameters()))
    began = time.process_time()
    graph = pk.Graph.of(model, inputs)
    tell(analysis_s=_since(began))
    began = time.process_time()
    branches = graph.branches()
    tell(
        branches_s=_since(began),
        branches=len(branches),
        kinds=dict(Counter(branch.kind.value for branch in branches)),
        stay=dict(Counter(branch.reason for branch in branches if branch.reason)),
        decoding=graph.branch_analysis.decoding,
        operations=sum(len(one.trace.operations) for one in graph.branch_analysis.recordings),
        undecoded=graph.branch_analysis.undecoded,
    )
    offered = [branch.name for branch in branches if branch.removable]
    if not offered:
        return
    runs = Runs.of(graph, inputs).possible(model)
    trial = Trial(model, graph, runs, plain(model, runs))
    alone = []
    for one in chosen(offered, most):
        alone.append(trial.alone(one))
        tell(offered=len(offered), alone=alone)
    if len(offered) > 1:
        tell(half=trial.half())


def work(family: str, name: str, most: int, threads: int) -> None:
    """Measures one model; an error is a result, too."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        measure(family, name, most)
    except Exception as error:
        traceback.print_exc()
        print(flush=True)
        text = " ".join(str(error).split())
        told = {"refused": text[:2000]} if isinstance(error, pk.PrunekitError) else {}
        zoo_worker.tell(failed=f"{type(error).__name__}: {text[:400]}", **told)

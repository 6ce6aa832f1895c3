"""Examining a model and its pruned copy: what every layer does, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import Analysis, Graph, Plan, RehearsalError, Sizer, auto_alignment, groups_of
from prunekit_plugins.budgets.counts import operation_macs, whole_macs
from prunekit_plugins.doctor.facts import BranchFacts, Facts, Finding, LayerFacts, Pair
from prunekit_plugins.doctor.findings import find
from prunekit_plugins.measure import time_layers, timed

ROUNDS = 10
WARM_UP = 2


def diagnose(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    rounds: int = ROUNDS,
    after_round: Callable[[], None] | None = None,
) -> tuple[Facts, list[Finding]]:
    """Says why a pruned model isn't as much faster as it has fewer multiply-accumulates.

    Args:
        model: The model before pruning.
        small: A copy that the plan was applied to.
        plan: The plan.
        inputs: What to run both on: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        rounds: How often both are timed, in turns.
        after_round: Called after every round.

    Returns:
        What was measured, and what was found.

    Raises:
        ArgumentError: Nothing is known about the device (see ``align="auto"``).
    """
    facts = examine(model, small, plan, inputs, rounds=rounds, after_round=after_round)
    return facts, find(facts)


def examine(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    inputs: Any,
    *,
    rounds: int = ROUNDS,
    after_round: Callable[[], None] | None = None,
) -> Facts:
    """Collects the facts; arguments as for `diagnose`."""
    alignment = auto_alignment(model)
    graph = Graph.of(model, inputs)
    before, after = time_layers([model, small], inputs, rounds=rounds, warm_up=WARM_UP, after_round=after_round)
    after = {plan.renaming.before(path): found for path, found in after.items()}  # layers may have other numbers
    work = _work(graph, plan, {*before, *after})
    pinned = _pinned(graph, plan)
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    layers = {}
    for path in dict.fromkeys([*before, *after]):
        times = tuple(found[path].median if path in found else 0.0 for found in (before, after))
        macs, traffic, depthwise = work.get(path, ((0.0, 0.0), (0.0, 0.0), False))
        layers[path] = LayerFacts(
            path,
            kinds.get(path, "outside layers"),
            (times[0], times[1]),
            macs,
            traffic,
            _sizes(graph.analysis, plan, path),
            depthwise,
            pinned.get(path, {}),
            path in plan.renaming.removed or plan.renaming.after(path) is None,
        )
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    overhead = time_layers([nn.Sequential(nn.ReLU()).to(device)], torch.zeros(1, device=device))[0]["0"].median
    branches = () if plan.absent else _branches(graph, {path: layer.seconds[0] for path, layer in layers.items()})
    facts = Facts(layers, alignment.multiple, alignment.why, machine_balance(device, dtype), overhead, branches)
    if facts.by_depth > facts.speed_up:  # worth proving
        proven = _go_together(graph, [one.name for one in branches])
        facts = attrs.evolve(facts, branches=tuple(one for one in branches if one.name in proven))
    return facts


def _branches(graph: Graph, seconds: Mapping[str, float]) -> tuple[BranchFacts, ...]:
    """Lists the branches that can go, but for those in others, with what the layers take that run for them only."""
    recording = graph.branch_analysis.recordings[0]
    macs = whole_macs(recording)
    places: dict[str, set[int]] = {}
    for operation in recording.trace.operations:
        places.setdefault(operation.module, set()).add(operation.index)
    held = graph.branch_obstacles()
    own = {branch.name: branch.operations(0) for branch in graph.branches() if branch.name not in held}
    outer = {name: mine for name, mine in own.items() if not any(mine < other for other in own.values())}
    return tuple(
        BranchFacts(
            name,
            sum(seconds.get(path, 0.0) for path, run in places.items() if run <= mine),
            float(sum(macs.get(index, 0) for index in mine)),
        )
        for name, mine in outer.items()
    )


def _go_together(graph: Graph, names: Sequence[str]) -> Collection[str]:
    """Finds branches that a plan takes out together, of some that may go."""
    left = list(names)
    while left:
        try:
            graph.plan_without(left)
        except RehearsalError as error:
            left = [name for name in left if name not in error.branches] if error.branches else []
        else:
            break
    return left


def machine_balance(device: torch.device, dtype: torch.dtype) -> float:
    """Measures how many multiply-accumulates a device does while it moves a byte: a large product and a large copy."""
    width, length = 512, 1 << 22
    a = torch.ones(width, width, device=device, dtype=dtype)
    waited = None if device.type == "cpu" else device
    b = torch.ones(length, device=device, dtype=dtype)
    with torch.inference_mode():
        product, copied = timed([lambda: a @ a, lambda: b.clone()], rounds=5, warm_up=2, device=waited)
    rate = width**3 / min(product.seconds)
    bandwidth = 2 * length * b.element_size() / min(copied.seconds)
    return float(rate / bandwidth)


def _work(graph: Graph, plan: Plan, timed: Collection[str]) -> dict[str, tuple[Pair, Pair, bool]]:
    """Multiply-accumulates and bytes moved per module, before and after, and whether it is a depthwise convolution.

    What runs in a module that isn't called, and so not timed, counts for the one around it that is.
    """
    recordings = graph.analysis.recordings[0], graph.analysis_after(plan).recordings[0]
    sizers = (Sizer({}), Sizer(plan.kept))
    macs: dict[str, list[float]] = {}
    traffic: dict[str, list[float]] = {}
    depthwise: set[str] = set()
    for place, (recording, sizer) in enumerate(zip(recordings, sizers, strict=True)):
        for operation, counted in operation_macs(recording, sizer):
            macs.setdefault(_within(operation.module, timed), [0.0, 0.0])[place] += float(counted)  # type: ignore[arg-type]
        for operation in recording.trace.operations:
            if operation.outputs and all(ref.index in recording.trace.shares for ref in operation.outputs):
                continue
            for index in dict.fromkeys(ref.index for ref in (*operation.references(), *operation.outputs)):
                size = math.prod(recording.shape(index, sizer)) * recording.trace.dtypes[index].itemsize
                traffic.setdefault(_within(operation.module, timed), [0.0, 0.0])[place] += size
    whole = recordings[0].trace
    for operation in whole.operations:
        groups, weight = operation.arguments.get("groups"), operation.arguments.get("weight")
        several = isinstance(groups, int) and groups > 1
        if several and weight is not None and whole.shapes[weight.index][1] == 1:
            depthwise.add(_within(operation.module, timed))
    return {
        path: (_pair(macs.get(path, [0.0, 0.0])), _pair(moved), path in depthwise) for path, moved in traffic.items()
    }


def _within(path: str, timed: Collection[str]) -> str:
    while path and path not in timed:
        path = path.rpartition(".")[0]
    return path


def _pair(values: list[float]) -> Pair:
    return values[0], values[1]


def _sizes(analysis: Analysis, plan: Plan, path: str) -> dict[str, int]:
    """Channels in and out of a layer's matrices that changed, after the cut."""
    sizer, found = Sizer(plan.kept), {}
    for name, parameter in analysis.parameters.items():
        if name.rpartition(".")[0] == path and len(parameter.shape) > 1:
            for dim in range(2):
                size = sizer(parameter.dims[dim])
                if size != parameter.shape[dim]:
                    found[f"{name.rpartition('.')[2]}[{dim}]"] = size
    return found


def _pinned(graph: Graph, plan: Plan) -> dict[str, dict[str, str]]:
    """Dims of matrices that couldn't shrink, or were left whole, with the reason, by layer."""
    found: dict[str, dict[str, str]] = {}
    reasons = graph.report().pinned
    for name, parameter in graph.analysis.parameters.items():
        path, _, own = name.rpartition(".")
        for dim, layout in enumerate(parameter.dims if len(parameter.shape) > 1 else ()):
            whole = [group for group in groups_of(layout) if group not in plan.kept]
            if f"{name}[{dim}]" in reasons:
                found.setdefault(path, {})[f"{own}[{dim}]"] = reasons[f"{name}[{dim}]"]
            elif whole:
                found.setdefault(path, {})[f"{own}[{dim}]"] = f"the group {whole[0]} was left whole"
    return found

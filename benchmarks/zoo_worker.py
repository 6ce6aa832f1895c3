"""One model of the zoo in a process of its own: prints what is known as JSON lines, as soon as it is known.

`zoo.py` starts it; by hand: ``python benchmarks/zoo_worker.py torchvision resnet18``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import torch
import zoo_models
from torch import nn

import prunekit as pk
from prunekit_core.program.outputs import output_tensors
from prunekit_core.record.recorder import check_recordable
from prunekit_core.rehearse import rehearsal
from prunekit_plugins.importance import RandomImportance

ATTEMPTS = 12
CHAOS = 1e-6
"""Errors in float64 up to which they are held against what rounding alone makes."""
ROUNDINGS = 100
"""How many times that an error may be: a sum of thousands of terms rounds by tens of last bits, in every layer."""


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Casts the real tensors in nested inputs."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(cast(item, dtype) for item in value)
    return value


def shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in output_tensors(output)]


def prunable(analysis: Any) -> float:
    """Fraction of the elements of parameters (else of buffers) that lie in a tensor with units of some group."""
    held = {member.parameter for group in analysis.groups.values() for member in group.members}
    found = {n: p for n, p in analysis.parameters.items() if not p.buffer} or analysis.parameters
    sizes = {n: torch.Size(p.shape).numel() for n, p in found.items()}
    return sum(size for name, size in sizes.items() if name in held) / max(1, sum(sizes.values()))


def elements(model: nn.Module) -> int:
    """Counts the elements of the parameters, or, where there are none, of the buffers that hold the weights."""
    return sum(tensor.numel() for tensor in [*model.parameters()] or [*model.buffers()])


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


@contextlib.contextmanager
def counted_replays() -> Iterator[list[None]]:
    """Collects an item for every replay of the program, one per mode and way of cutting it."""
    usual, found = rehearsal.Stage.replay, list[None]()

    def replay(*args: Any, **named: Any) -> Any:
        found.append(None)
        return usual(*args, **named)

    rehearsal.Stage.replay = replay  # type: ignore[method-assign]
    try:
        yield found
    finally:
        rehearsal.Stage.replay = usual  # type: ignore[method-assign]


def exactness(original: nn.Module, pruned: nn.Module, plan: pk.Plan, inputs: Any, *, whole: bool) -> dict[str, Any]:
    """Compares in float32, then, where rounding may be what differs, in float64.

    The whole cut is made anew in float64: constants that follow a size are more exact there.
    """
    check = pk.check_exact(original, pruned, plan, inputs)
    found = {"error": check.error, "exact": check.exact, "dtype": "float32", "mixes": len(check.inexact)}
    if check.exact:
        return found
    random_program = {"random": check.why} if check.random else {}
    try:
        with double_precision():
            double, inputs = copy.deepcopy(original).double(), cast(inputs, torch.float64)
            smaller = copy.deepcopy(double)
            if whole:
                plan = pk.prune(smaller, inputs, importance=RandomImportance()).plan
            else:
                smaller = plan.apply(smaller)
            check = pk.check_exact(double, smaller, plan, inputs)
    except Exception as error:
        return {**found, **random_program, "float64": f"{type(error).__name__}: {str(error)[:200]}"}
    made = {"error": check.error, "exact": check.exact, "dtype": "float64", "mixes": len(check.inexact)}
    if not check.exact and check.error < CHAOS:
        made["rounding"] = rounding(double, inputs)
        made["exact"] = check.error <= ROUNDINGS * made["rounding"]
    return made if made["exact"] else {**made, **random_program}


def rounding(model: nn.Module, inputs: Any) -> float:
    """The relative difference that it makes to the outputs of a model when all its weights are moved by their last bit.

    Deep networks with random weights amplify it: EfficientNet B7 a million times.
    """
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in moved.parameters():
        sign = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter) * 2 - 1
        parameter.data.mul_(1 + torch.finfo(parameter.dtype).eps * sign)
    with torch.no_grad():
        pairs = zip(*(output_tensors(call(either, inputs)) for either in (model, moved)), strict=True)
        real = [(a, b) for a, b in pairs if a.is_floating_point() and a.numel()]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in real), default=0.0)


def shift_seen(original: nn.Module, pruned: nn.Module, plan: pk.Plan, inputs: Any) -> bool:
    """Whether the check fails once the positions of one weight that stayed are each their neighbour's."""
    matrices = [cut for cut in plan.parameters if len(cut.shape) > 1 and plan.positions(cut)]
    for cut in (matrices[-1:] + matrices[:: -(-len(matrices) // ATTEMPTS) or 1])[:ATTEMPTS]:
        wrong = copy.deepcopy(pruned)
        inner = check_recordable(wrong)
        tensor = {**dict(inner.named_buffers()), **dict(inner.named_parameters())}.get(cut.parameter)
        if tensor is not None:
            tensor.data = tensor.data.roll(1, dims=max(plan.positions(cut)))
            if pk.check_exact(original, wrong, plan, inputs).error > 1e-4:
                return True
    return False


def single_groups(model: nn.Module, inputs: Any, count: int) -> list[dict[str, Any]]:
    """Cuts a third of some groups, each by itself, out of a copy."""
    results = []
    graph = pk.DependencyGraph().build_dependency(model, inputs, modes=(False,))
    names = [group.name for group in graph.groups()]
    generator = random.Random(0)
    for name in generator.sample(names, min(count, len(names))):
        pruned = copy.deepcopy(model)
        fresh = pk.DependencyGraph().build_dependency(pruned, inputs, modes=(False,))
        size = fresh.analysis.groups[name].size
        units = generator.sample(range(size), max(1, size // 3))
        try:
            fresh.remove({name: units})
        except pk.RehearsalError as error:
            results.append({"group": name, "exact": True, "error": None, "refused": str(error)[:300]})
            continue
        results.append({"group": name, **exactness(model, pruned, fresh.applied, inputs, whole=False)})
    return results


def trains(example: zoo_models.Example, model: nn.Module) -> bool:
    """Whether a model runs in train mode on the example: some want labels there, or longer sounds."""
    try:
        (example.train or functools.partial(call, inputs=example.inputs))(model.train())
    except Exception:  # whatever it is, it isn't about pruning
        return False
    return True


def backward(example: zoo_models.Example, *, training: bool) -> dict[str, Any]:
    """Forward and backward in train mode; every parameter that gets a gradient gets one of its shape."""
    example.model.train(training)
    outputs = example.train(example.model) if example.train and training else call(example.model, example.inputs)
    real = [tensor for tensor in output_tensors(outputs) if tensor.is_floating_point() and tensor.requires_grad]
    if real:
        sum(tensor.float().sum() for tensor in real).backward()  # type: ignore[union-attr]
    given = [p for p in example.model.parameters() if p.grad is not None]
    trained = bool(real) and any(p.requires_grad for p in example.model.parameters())
    return {
        "backward": bool(given or not trained) and all(p.grad is not None and p.grad.shape == p.shape for p in given)
    }


def measure(family: str, name: str, groups: int, quick: bool = False) -> None:
    torch.manual_seed(0)
    tell(ran=False)
    example = zoo_models.FAMILIES[family].build(name)
    model, inputs = example.model.eval(), example.inputs
    tell(params=sum(p.numel() for p in model.parameters()))
    before = shapes(call(copy.deepcopy(model), inputs))  # with gradients: some forwards ask for derivatives
    training = trains(example, copy.deepcopy(model))
    tell(ran=True, refused_for=example.refused, trains=training)
    began = time.process_time()
    graph = pk.DependencyGraph().build_dependency(model, inputs)
    seconds = time.process_time() - began
    analysis = graph.analysis
    report = graph.report()
    gaps = sorted({gap.operation for gap in analysis.not_understood if gap.froze and gap.why.startswith("no rule")})
    tell(
        analysis_s=round(seconds, 2),
        operations=sum(len(recording.trace.operations) for recording in analysis.recordings),
        groups=len(analysis.groups),
        prunable=round(prunable(analysis), 4),
        without_rule=gaps,
        not_understood=list(report.not_understood)[:30],
        pins=dict(Counter(report.pinned.values()).most_common(12)),
        untouched=len(report.untouched),
        notes=list(report.notes),
    )
    original = copy.deepcopy(model)
    began = time.process_time()
    with counted_replays() as replays:
        result = pk.prune(model, inputs, importance=RandomImportance())
    tell(
        replays=len(replays),
        prune_s=round(time.process_time() - began, 2),
        left=round(elements(model) / elements(original), 4),
        pruned=len(result.report.pruned),
        given_back=dict(
            Counter(text[:160] for text in result.report.left.values() if text.startswith("given back")).most_common(5)
        ),
        edits=len(result.plan.edits),
        constants=[note for note in result.report.notes if note.startswith("a constant of")][:4],
    )
    after = shapes(call(copy.deepcopy(model), inputs))
    tell(shapes_kept=after == before or example.free_outputs)
    if quick:
        return
    tell(**exactness(original, model, result.plan, inputs, whole=True))
    tell(shift_seen=shift_seen(original, model, result.plan, inputs))
    try:
        tell(**backward(example, training=training))
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:200]}"
        try:  # eval mode of some can't be trained in, whatever their size
            backward(attrs.evolve(example, model=copy.deepcopy(original)), training=training)
            tell(backward=False, backward_failed=told)
        except Exception as same:
            tell(backward=str(same) == str(error), backward_failed=told)
    tell(single=single_groups(original, inputs, groups))


def work(family: str, name: str, groups: int, threads: int, quick: bool = False) -> None:
    """Measures one model; an error is a result, too."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        measure(family, name, groups, quick)
    except Exception as error:
        traceback.print_exc()
        print(flush=True)
        text = " ".join(str(error).split())
        told = {"refused": text[:2000]} if isinstance(error, pk.PrunekitError) else {}
        tell(failed=f"{type(error).__name__}: {text[:400]}", **told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=sorted(zoo_models.FAMILIES))
    parser.add_argument("model")
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    work(args.family, args.model, args.groups, args.threads)


if __name__ == "__main__":
    main()

"""One measurement in a process of its own; prints one JSON object per line as soon as it is known.

It runs in two environments, prunekit's and Torch-Pruning's, so it imports neither tool before it knows which is asked
for. `speed.py` starts it; by hand: ``python worker.py prunekit resnet18 --threads 1 --repeats 3``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import speed_models
import torch
from memory import peak_memory
from torch import nn

RATIO = 0.5
PHASES = ("analysis", "plan", "application")
"""Recording and groups; scores, choice and rehearsal; the cut."""
SEPARATE = ("query", "key", "value")


def report(kind: str, **values: Any) -> None:
    """Prints one result at once: what was measured before a time limit strikes still counts."""
    print(json.dumps({"kind": kind, **values}), flush=True)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- one pruning step


def tiny() -> tuple[nn.Module, torch.Tensor]:
    """A model that takes each tool once through its own imports and caches."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(128, speed_models.CLASSES),
    )
    return model.eval(), torch.randn(1, 3, 8, 8)


def prunekit_step(model: nn.Module, x: Any) -> dict[str, float]:
    """Analysis, groups and one step; the rehearsal is part of the plan.

    Returns:
        Processor seconds by phase, and how many programs were recorded.
    """
    pk = importlib.import_module("prunekit")
    moments = [time.process_time()]
    pruner = pk.BasePruner(model, x, "magnitude", pruning_ratio=RATIO)
    moments.append(time.process_time())
    plan = pruner.plan()
    moments.append(time.process_time())
    pruner.graph.apply(plan)
    moments.append(time.process_time())
    phases = {name: b - a for name, (a, b) in zip(PHASES, itertools.pairwise(moments), strict=True)}
    return phases | {"programs": len(pruner.graph.analysis.recordings)}


def torch_pruning_step(model: Any, x: Any) -> dict[str, float]:
    """The same with Torch-Pruning, with the hints that its own examples pass.

    The classifier is ignored; sizes of a torchvision ViT are rounded to its heads and its ``hidden_dim`` is set
    afterwards; query, key and value layers, fused or not, are given their number of heads.
    """
    tp = importlib.import_module("torch_pruning")
    ignored = [
        module
        for module in model.modules()
        if speed_models.CLASSES in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    heads: dict[Any, int] = {}
    for module in model.modules():
        for layer, count in (("qkv", "num_heads"), ("to_qkv", "n_heads"), *((n, "num_heads") for n in SEPARATE)):
            if isinstance(getattr(module, layer, None), nn.Linear) and hasattr(module, count):
                heads[getattr(module, layer)] = getattr(module, count)
        if hasattr(module, "head_dim") and hasattr(module, "q_proj"):
            for name in ("q_proj", "k_proj", "v_proj"):
                heads[getattr(module, name)] = getattr(module, name).out_features // module.head_dim
    vit = type(model).__name__ == "VisionTransformer"
    pruner = tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        num_heads=heads,
        round_to=model.encoder.layers[0].num_heads if vit else None,
    )
    pruner.step()
    if vit:
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if hasattr(module, "head_dim") and hasattr(module, "q_proj"):
            module.head_dim = module.q_proj.out_features // heads[module.q_proj]
    return {}


STEPS: dict[str, Callable[[nn.Module, Any], dict[str, float]]] = {
    "prunekit": prunekit_step,
    "torch-pruning": torch_pruning_step,
}


def measure_step(tool: str, model: nn.Module, x: Any, repeats: int) -> None:
    """Times one step per repeat on a fresh copy; afterwards, untimed, the pruned model must run and be smaller.

    Peak memory is how much the largest resident size of the process rose over that before the first step, and the copy
    that gets pruned was made by then: it is what the tool needs on top.
    """
    step = STEPS[tool]
    step(*tiny())
    before, expected = parameters(model), speed_models.shapes(speed_models.run(model, x))
    for number in range(repeats):
        target = copy.deepcopy(model)
        resident = peak_memory()
        start, start_cpu = time.perf_counter(), time.process_time()
        phases = step(target, x)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        values = {"seconds": seconds, "cpu_seconds": cpu_seconds, "parameters": parameters(target) / before}
        if not number:
            values["extra_bytes"] = peak_memory() - resident
        report("step", **values, **phases)
    try:
        found = speed_models.shapes(speed_models.run(target, x))
    except Exception as error:
        report("failed", reason=f"the pruned model doesn't run: {type(error).__name__}: {first_line(error)}")
        return
    if found != expected or parameters(target) >= before:
        report("failed", reason=f"the pruned model gives {found} with {parameters(target) / before:.0%} of parameters")


def measure_first_call(tool: str, model: nn.Module, x: Any) -> None:
    """Times one step in a process that has only imported PyTorch and built the model: the tool's imports count."""
    start, start_cpu = time.perf_counter(), time.process_time()
    STEPS[tool](model, x)
    report("cold", seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - start_cpu)


def measure_fake_forward(model: nn.Module, x: Any, repeats: int) -> None:
    """Finds the processor seconds of one forward on fake tensors in inference mode: a recording costs them at least.

    Attention's fast path, one operation for a whole layer, is off, as it is in a recording. A forward in train mode is
    measured as well, for the models that have another program there.
    """
    fake_tensor = importlib.import_module("torch._subclasses.fake_tensor")
    mode, times = fake_tensor.FakeTensorMode(), {False: [], True: []}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
    inputs = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, x)
    torch.backends.mha.set_fastpath_enabled(False)
    with mode, torch.inference_mode():
        for _ in range(repeats + 1):
            for training, found in times.items():
                model.train(training)
                start = time.process_time()
                speed_models.run(model, inputs)
                found.append(time.process_time() - start)
    seconds, train_seconds = (statistics.median(found[1:]) for found in times.values())
    report("forward", fake=True, seconds=seconds, train_seconds=train_seconds)


def measure_real_forward(model: nn.Module, x: Any, repeats: int) -> None:
    """Finds the processor seconds of one forward in eval mode on real tensors, which such a model is recorded on."""
    model.eval()
    found = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.process_time()
            speed_models.run(model, x)
            found.append(time.process_time() - start)
    report("forward", fake=False, seconds=statistics.median(found[1:]), train_seconds=0.0)


# -- application


def measure_application(model: nn.Module, x: Any, repeats: int) -> None:
    """Finds the processor seconds of applying a plan and of copying every parameter once, and the peak of memory."""
    pk = importlib.import_module("prunekit")
    plan = pk.BasePruner(model, x, "magnitude", pruning_ratio=RATIO).plan()
    applying, copying = [], []
    for _ in range(4 * repeats + 1):  # milliseconds, of which a few say little
        target = copy.deepcopy(model)
        start = time.process_time()
        plan.apply(target)
        applying.append(time.process_time() - start)
        start = time.process_time()
        clones = [parameter.clone() for parameter in model.parameters()]
        copying.append(time.process_time() - start)
        del clones
    extra, made = extra_memory(plan, model)
    report(
        "application",
        seconds=statistics.median(applying[1:]),
        copy_seconds=statistics.median(copying[1:]),
        extra_bytes=extra,
        made_bytes=made,
        largest_bytes=max(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    )


def extra_memory(plan: Any, model: nn.Module) -> tuple[int, int]:
    """Measures the memory that applying a plan needs on top.

    Method: torch's profiler notes every allocation (positive) and every release (negative) of its CPU allocator, with
    a time; their running sum is what is allocated. It can only tell the size of what it saw being allocated, so the
    copy that gets pruned is made inside the profiled region; what happened before the marked start of the application
    is the base line. Unlike the resident size of the process, this doesn't depend on when memory is handed back to
    the system. Index tensors count, Python objects don't.

    Returns:
        Bytes by which the application exceeds, at its peak, what was allocated before it; and the bytes of the tensors
        that it makes, all of which are there before the first is put in.
    """
    profiler = torch.profiler
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        with torch.no_grad():
            target = copy.deepcopy(model)
        with profiler.record_function("application"):
            plan.apply(target)
    assert found.profiler is not None
    events = found.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == "application")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for moment, size in changes:
        if moment >= start:
            now += size
            peak = max(peak, now)
    before = model.state_dict()
    changed = {
        tensor.data_ptr(): tensor for n, tensor in target.state_dict().items() if tensor.shape != before[n].shape
    }
    return peak, sum(tensor.numel() * tensor.element_size() for tensor in changed.values())


# -- a large model


def measure_llama(repeats: int) -> None:
    """Times analysis and a plan for a Llama of 32 layers whose parameters hold no data (meta device).

    Units are chosen at random: a criterion can't read weights that aren't there.
    """
    pk = importlib.import_module("prunekit")
    llama = importlib.import_module("llama")
    x = torch.zeros(1, 16, dtype=torch.long, device="meta")
    for tied in (False, True):
        with torch.device("meta"):
            model = llama.Llama(llama.Sizes(tied=tied)).eval()
        for _ in range(repeats):
            start = time.perf_counter()
            pruner = pk.BasePruner(model, x, "random", pruning_ratio=RATIO)
            analysis = time.perf_counter() - start
            plan = pruner.plan()
            report(
                "llama",
                tied=tied,
                parameters=parameters(model),
                analysis=analysis,
                plan=time.perf_counter() - start - analysis,
                kept=plan.preview().params_after / plan.preview().params_before,
            )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=STEPS)
    parser.add_argument("model", help="a name from torchvision.models, or llama")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="only the first call of a process, without a warm-up")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    try:
        if options.model == "llama":
            prunekit_step(*tiny())
            measure_llama(options.repeats)
            return
        model, x = speed_models.build(options.model)
        if options.cold:
            measure_first_call(options.tool, model, x)
            return
        measure_step(options.tool, model, x, options.repeats)
        if options.tool == "prunekit" and not options.model.startswith("stack_"):
            measure_application(model, x, options.repeats)
            if options.model in speed_models.DETECTORS:  # they look at values, which fakes don't have
                measure_real_forward(model, x, options.repeats)
            else:
                measure_fake_forward(model, x, options.repeats)
    except Exception as error:
        traceback.print_exc()
        report("failed", reason=f"{type(error).__name__}: {first_line(error)}")


if __name__ == "__main__":
    main()

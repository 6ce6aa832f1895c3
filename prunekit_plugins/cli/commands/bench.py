"""``prunekit bench``: what a model costs, measured, before and after pruning, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from torch import nn

from prunekit import load, read_plan
from prunekit.plugin import ArgumentError, default_registry
from prunekit_plugins.budgets import watched, write_latency_table
from prunekit_plugins.budgets.inference.workload import Used, Workload
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import TensorSpec, check_there, check_writable, read_inputs, read_workload
from prunekit_plugins.cli.commands.destination import STOCK
from prunekit_plugins.cli.models import Subject, build
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.cli.sources import folder_of
from prunekit_plugins.folders.known import library_at
from prunekit_plugins.folders.of_transformers import TRANSFORMERS
from prunekit_plugins.measure import Timing, count_macs, peak_memory, side_by_side, threads
from prunekit_plugins.prune.serving import serving_profile

ROUNDS = 20
WARM_UP = 5


def bench(
    model: options.Model,
    inputs: options.Inputs = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan (JSON) that makes the smaller model.", show_default=False)
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A smaller model that prune --out wrote.", show_default=False)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Size of the first dim of all inputs.", show_default=False)] = None,
    rounds: Annotated[int, typer.Option(help="How often each model is timed.")] = ROUNDS,
    warm_up: Annotated[int, typer.Option(help="Rounds before, which don't count.")] = WARM_UP,
    cores: Annotated[
        int | None, typer.Option("--threads", help="Threads on the CPU; as PyTorch chose without.", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to run: cpu, or the accelerator that PyTorch finds: cuda, mps, xpu.")
    ] = "cpu",
    latency_table: Annotated[
        Path | None,
        typer.Option(help="Where times of operations go, for prune --latency-table elsewhere.", show_default=False),
    ] = None,
    workload: options.Workload = None,
    as_json: options.Json = False,
) -> None:
    """Measure latency, throughput, memory and MACs of a model, and of a smaller one beside it."""
    specs = read_inputs(inputs or ())
    _check(plan, weights, batch, rounds, warm_up, cores, device)
    if latency_table is not None:
        check_writable(latency_table, "--latency-table")
    counted = read_workload(workload)
    calls = None if counted is None else Workload.of(counted)
    output = Output(as_json)
    with output.working(f"building {model}"):
        subject = build(model, specs)
        if batch is not None:
            subject = build(model, [attrs.evolve(spec, shape=(batch, *spec.shape[1:])) for spec in subject.specs])
        names, models = _models(subject, plan, weights)
    subject = subject.beside(plan or weights)
    given = _moved(subject.inputs, device)
    for each in models:
        each.to(device)
    measured, fed, samples = _in_use(models, given, calls, _samples(subject.specs))
    with threads(cores) as used, output.progress(f"{rounds} rounds after {warm_up} to warm up", rounds + warm_up) as on:
        timings = side_by_side(measured, fed, rounds=rounds, warm_up=warm_up, after_round=on)
    with output.working("counting"):
        found = [
            _Found(name, timing, samples, peak_memory(each, fed), count_macs(each, fed), each)
            for name, timing, each in zip(names, timings, measured, strict=True)
        ]
    if latency_table is not None:
        with threads(cores), output.tracked("measuring operations") as shown, watched(shown):
            free = _freed(models[0], given, model)
            write_latency_table(models[0], given, latency_table, workload=counted, free_outputs=free)
    where = f"the CPU, threads: {used}" if device == "cpu" else device
    if device == "cuda":
        where = torch.cuda.get_device_name()
    output.table(Table(f"{subject}, on {where}", ("cost", *(f">{name}" for name in names), ">left"), _rows(found)))
    runs = "forward passes" if calls is None else "runs of the workload"
    output.line(f"latency: median of {rounds} {runs} in turns after {warm_up} to warm up, in inference mode")
    if calls is not None:
        output.line(f"workload: {calls.of_calls}; latency, MACs and peak memory are those of all its calls together")
    told = {} if counted is None else {"workload": counted}
    output.result({"model": subject.name, "device": device, "threads": used, "rounds": rounds, **told, **_data(found)})


def _in_use(
    models: Sequence[nn.Module], inputs: Any, workload: Workload | None, samples: int
) -> tuple[Sequence[nn.Module], Any, int]:
    """What is measured: models that make the calls of a workload, what they are given, and how many examples."""
    if workload is None:
        return models, inputs, samples
    example = workload.made_of(inputs)
    return [Used(model, example.runner) for model in models], example.kwargs or example.args, workload.batch or samples


def _check(
    plan: Path | None,
    weights: Path | None,
    batch: int | None,
    rounds: int,
    warm_up: int,
    cores: int | None,
    device: str,
) -> None:
    if plan is not None and weights is not None:
        raise ArgumentError("Give --plan or --weights, not both.")
    check_there(plan, weights)
    if min(rounds, 1 if batch is None else batch, 1 if cores is None else cores) < 1 or warm_up < 0:
        raise ArgumentError("--rounds, --batch and --threads must be positive, and --warm-up not negative.")
    found = torch.accelerator.current_accelerator(check_available=True)
    known = ["cpu"] if found is None else ["cpu", found.type]
    if device not in known:
        raise ArgumentError(
            "The --device isn't there.", why=f"got {device!r}, PyTorch finds {' and '.join(known)}", hint="leave it out"
        )


def _freed(model: nn.Module, inputs: Any, name: str) -> tuple[str, ...]:
    """Outputs that ``prunekit prune`` lets shrink in a folder of transformers, as it serves it by default."""
    folder = folder_of(name)
    if folder is None or library_at(folder) is not TRANSFORMERS:
        return ()
    return serving_profile(STOCK, model, inputs, default_registry()).free_outputs


def _models(subject: Subject, plan: Path | None, weights: Path | None) -> tuple[list[str], list[nn.Module]]:
    if plan is None and weights is None:
        return ["now"], [subject.model]
    small = copy.deepcopy(subject.model)
    if plan is not None:
        read_plan(plan).apply(small)
    elif weights is not None:
        small = load(small, weights)
    return ["before", "after"], [subject.model, small.eval()]


def _moved(inputs: Any, device: str) -> Any:
    if isinstance(inputs, Mapping):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return tuple(tensor.to(device) for tensor in inputs)


def _samples(specs: Sequence[TensorSpec]) -> int:
    return specs[0].shape[0]


@attrs.frozen(eq=False)
class _Found:
    """What was measured of one model."""

    name: str
    timing: Timing
    samples: int
    memory: int
    macs: float
    model: nn.Module

    @property
    def throughput(self) -> float:
        return self.samples / self.timing.median

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def _rows(found: Sequence[_Found]) -> list[tuple[str, ...]]:
    def row(name: str, values: Sequence[float], texts: Sequence[str]) -> tuple[str, ...]:
        left = f"{values[1] / values[0]:.1%}" if len(values) > 1 and values[0] else ""
        return (name, *texts, left)

    medians = [each.timing.median for each in found]
    spreads = [each.timing.quartiles for each in found]
    return [
        row("latency", medians, [f"{median * 1e3:.2f} ms" for median in medians]),
        row("half of the runs", [], [f"{low * 1e3:.2f} - {high * 1e3:.2f} ms" for low, high in spreads]),
        row("samples per second", [f.throughput for f in found], [f"{f.throughput:,.1f}" for f in found]),
        row("peak memory", [f.memory for f in found], [f"{f.memory / 1e6:,.2f} MB" for f in found]),
        row("MACs", [f.macs for f in found], [f"{f.macs:,.0f}" for f in found]),
        row("parameters", [f.params for f in found], [f"{f.params:,}" for f in found]),
    ]


def _data(found: Sequence[_Found]) -> dict[str, Any]:
    return {
        each.name: {
            "latency_seconds": each.timing.median,
            "quartiles": list(each.timing.quartiles),
            "seconds": list(each.timing.seconds),
            "samples_per_second": each.throughput,
            "peak_memory_bytes": each.memory,
            "macs": each.macs,
            "params": each.params,
        }
        for each in found
    }

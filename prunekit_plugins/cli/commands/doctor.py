"""``prunekit doctor``: why a pruned model isn't as much faster as it has fewer multiply-accumulates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit import plan_to_target, read_plan
from prunekit.plugin import ArgumentError, BasePruner
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_there, read_inputs, read_targets
from prunekit_plugins.cli.listing import show_rows
from prunekit_plugins.cli.models import build
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.doctor import Facts, Finding, diagnose
from prunekit_plugins.measure import threads

ROUNDS = 10
WARM_UP = 2


def doctor(
    model: options.Model,
    inputs: options.Inputs = None,
    plan: Annotated[Path | None, typer.Option(help="The plan (JSON) to look at.", show_default=False)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The smaller model (prune --out) to look at.", show_default=False)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="COST=VALUE", help="Without either: what to prune to; macs=0.5.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often both models are timed.")] = ROUNDS,
    cores: Annotated[
        int | None, typer.Option("--threads", help="Threads on the CPU; as PyTorch chose without.", show_default=False)
    ] = None,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """Say why a smaller model isn't as much faster as hoped: odd sizes, memory, pinned layers, fixed costs."""
    specs, targets = read_inputs(inputs or ()), read_targets(target or ())
    if sum(given is not None for given in (plan, weights, targets)) > 1:
        raise ArgumentError("Give one of --plan, --weights and --target.")
    check_there(plan, weights)
    if min(rounds, cores or 1) < 1:
        raise ArgumentError("--rounds and --threads must be positive.")
    output = Output(as_json)
    registry = project_registry(block, config, plugin)
    with output.working(f"building {model}"):
        subject = build(model, specs)
    subject = subject.beside(plan or weights)
    with output.working(f"pruning {model}"):
        if plan is not None:
            chosen = read_plan(plan)
        elif weights is not None:
            chosen = read_plan(weights)
        else:
            pruner = BasePruner(subject.model, subject.inputs, registry=registry)
            chosen = plan_to_target(pruner, targets or {"macs": 0.5})
            pruner.require_something(chosen)
        small = chosen.apply(copy.deepcopy(subject.model), registry=registry)
    with threads(cores) as used, output.progress(f"{rounds} rounds", rounds + WARM_UP) as advance:
        facts, found = diagnose(subject.model, small, chosen, subject.inputs, rounds=rounds, after_round=advance)
    output.line(f"{subject}, on {used} threads")
    output.table(Table("before and after", ("", ">before", ">after", ">times less"), _summary(facts)))
    rows = [(f.layer or "the model", f.disease.value, f"{f.share[0]:.1%} -> {f.share[1]:.1%}", f.text) for f in found]
    show_rows(output, f"findings: {len(found)}", ("layer", "what", ">share of time", "numbers"), rows, everything)
    for advice in dict.fromkeys(f"{finding.disease.value}: {finding.advice}" for finding in found):
        output.line(f"what to do about {advice}")
    output.result(_data(facts, found, subject.name, used))


def _summary(facts: Facts) -> list[tuple[str, ...]]:
    (slow, fast), (many, few) = facts.seconds, facts.macs
    return [
        ("MACs", f"{many:,.0f}", f"{few:,.0f}", f"{facts.hoped_for:.2f}"),
        ("time in layers", f"{slow * 1e3:.2f} ms", f"{fast * 1e3:.2f} ms", f"{facts.speed_up:.2f}"),
    ]


def _data(facts: Facts, found: list[Finding], name: str, used: int) -> dict[str, Any]:
    return {
        "model": name,
        "threads": used,
        "macs": {"before": facts.macs[0], "after": facts.macs[1]},
        "seconds": {"before": facts.seconds[0], "after": facts.seconds[1]},
        "multiple": facts.multiple,
        "macs_per_byte": facts.balance,
        "overhead_seconds": facts.overhead,
        "layers": {
            layer.path: {
                "kind": layer.kind,
                "seconds": list(layer.seconds),
                "macs": list(layer.macs),
                "traffic": list(layer.traffic),
            }
            for layer in facts.layers.values()
        },
        "findings": [
            {
                "layer": finding.layer,
                "disease": finding.disease.value,
                "text": finding.text,
                "share": list(finding.share),
                "advice": finding.advice,
            }
            for finding in found
        ],
    }

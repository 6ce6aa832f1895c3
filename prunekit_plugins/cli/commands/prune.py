"""``prunekit prune``: a model in, a smaller one in a file out."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from torch import nn

from prunekit import ExactCheck, PruneResult, check_exact, prune as prune_model
from prunekit.plugin import ArgumentError, Batches, Config, PrunekitError, Registry, write_text
from prunekit_plugins.budgets import watched
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import (
    check_there,
    check_writable,
    read_criterion,
    read_inputs,
    read_name,
    read_targets,
    read_workload,
)
from prunekit_plugins.cli.calibrating import Data, counted
from prunekit_plugins.cli.commands.apply import convert, source_of
from prunekit_plugins.cli.commands.destination import Destination, folder_data, load_tested
from prunekit_plugins.cli.commands.trace import criteria_of, decisions, distributions, show_trace, trace_data
from prunekit_plugins.cli.listing import report_data, show_compensation, show_report
from prunekit_plugins.cli.models import Subject, build
from prunekit_plugins.cli.output import Output, Table, cost_data, cost_rows
from prunekit_plugins.cli.recipe import Recipe, only_branches
from prunekit_plugins.cli.repeating import finish, start
from prunekit_plugins.folders import SavedFolder
from prunekit_plugins.measure import side_by_side
from prunekit_plugins.reports import report_data as details, write_report
from prunekit_plugins.reports.files import check_report_path
from prunekit_plugins.reports.summary import LATENCY

NONE = "none"
ROUNDS = 10
"""How often a model is timed for a report."""


class NotExactError(PrunekitError, RuntimeError):
    """The pruned model doesn't compute what the original with the removed units zeroed computes."""


CRITERIA = ("importance", "branch_importance", "expert_importance")
"""Options that name a criterion."""


def prune(
    context: typer.Context,
    model: options.OptionalModel = None,
    inputs: options.Inputs = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of the units to remove; 0.5 without --target.", show_default=False)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COST=VALUE", help="What should be left: macs=0.5, params=0.4. Repeatable.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the smaller model goes: a .safetensors file, or a folder for hf:.", show_default=False
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Where the plan goes (JSON).", show_default=False)] = None,
    report: options.Report = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to start from (safetensors).", show_default=False)
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,ARG=VALUE]",
            help="The criterion that ranks the units; magnitude by default.",
            show_default=False,
        ),
    ] = None,
    global_pruning: Annotated[
        bool | None, typer.Option("--global/--local", help="Rank all units of the model together.", show_default=False)
    ] = None,
    round_to: Annotated[int | None, typer.Option(help="Keep sizes at multiples of this.", show_default=False)] = None,
    align: Annotated[
        str | None, typer.Option(help="auto: the multiple that suits this device and dtype.", show_default=False)
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Leave the outputs of a layer alone. Repeatable.", show_default=False),
    ] = None,
    max_pruning_ratio: options.MaxRatio = None,
    uniform: options.Uniform = None,
    free_outputs: options.FreeOutputs = None,
    prune_num_heads: options.Heads = None,
    prune_head_dims: options.HeadDims = None,
    head_pruning_ratio: options.HeadRatio = None,
    expert_pruning_ratio: options.ExpertRatio = None,
    serve: options.Serve = None,
    workload: options.Workload = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(help="Times that bench --latency-table wrote, for a target on latency.", show_default=False),
    ] = None,
    overwrite: options.Overwrite = False,
    max_shard_size: options.MaxShardSize = None,
    component: options.Component = None,
    push_to_hub: options.PushToHub = None,
    allocation: options.Allocation = None,
    branch_ratio: options.BranchRatio = None,
    branches: options.Branches = None,
    branch_importance: options.BranchImportance = None,
    expert_importance: options.ExpertImportance = None,
    by: options.By = None,
    keep_first: options.KeepFirst = None,
    keep_last: options.KeepLast = None,
    keep_names: options.KeepNames = None,
    calibration: options.Calibration = None,
    batch_size: options.BatchSize = None,
    batches: options.MaxBatches = None,
    compensation: options.Compensation = None,
    stages: options.Stages = None,
    reestimate_batchnorm: options.BatchNorm = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Repeat what --save-recipe wrote; what else is typed wins.", show_default=False),
    ] = None,
    save_recipe: Annotated[
        Path | None, typer.Option(help="Where a recipe goes that repeats this (TOML).", show_default=False)
    ] = None,
    random: Annotated[
        bool, typer.Option("--random-weights", help="Prune random weights, where an hf: folder holds none.")
    ] = False,
    on_disk: Annotated[
        bool,
        typer.Option("--on-disk", help="Never load the model: score and prune its files, one tensor at a time."),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail unless the result is exactly right.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show which plugin brought what decided.")] = False,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Load the code that the settings in a recipe name.")
    ] = False,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """Prune a model and write the smaller one: to a file that prunekit.load reads, or to a folder that loads."""
    # Everything that was typed is checked first: building a model and reading data may take minutes.
    known, registry = start(context, model, recipe, block, config, plugin, trusted=allow_code)
    model, weights = known.model, weights or known.checked_weights()
    specs, targets = read_inputs(inputs or known.input), read_targets(target or ())
    _check_together(ratio, targets, on_disk=on_disk, check=check, component=component, recipes=(recipe, save_recipe))
    data = _data_of(known, calibration, batch_size, batches, (compensation, stages, reestimate_batchnorm))
    source = source_of(model, weights) if on_disk else None
    goal = Destination.of(
        model, out, on_disk=on_disk, overwrite=overwrite, max_shard_size=max_shard_size, component=component,
        push_to_hub=push_to_hub,
    )  # fmt: skip
    _check_files(plan, report, save_recipe, latency_table, repeated=recipe)
    output = Output(as_json)
    output.warn_of_blocks(registry.unused_blocks())
    criteria = dict(zip(CRITERIA, (importance, branch_importance, expert_importance), strict=True))
    typed: dict[str, Any] = {
        "target": targets,
        **{name: None if value is None else read_criterion(value) for name, value in criteria.items()},
        "branches": branches or None,
        "free_outputs": free_outputs or None,
        "serve": goal.profile(serve or registry.config.option("serve"), registry),
        "workload": read_workload(workload),
        "allocation": None if allocation is None else read_name(allocation),
        "compensation": [read_name(name) for name in compensation if name != NONE] if compensation else None,
        "ignored_layers": [*registry.config.options.get("ignored_layers", ()), *ignore] if ignore else None,
    }
    for name in typed["compensation"] or ():
        registry.named("prunekit_compensators", name)
    # What was typed wins over the settings of the project and the recipe; None is what nobody typed.
    settings = registry.options(**{**Config.among(context.params), **typed})
    if importance is None and only_branches(settings):
        settings.pop("importance", None)  # the project's, for its other calls
    with output.working(f"building {model}"):
        if source is not None:
            settings["weights"] = source
        subject = build(goal.model, specs, None if on_disk else weights, known.seed, empty=on_disk, runs=bool(data))
    _check_weights(output, subject, random=random)
    read = None if data is None else data.batches(subject)
    # Pruning changes the model in place; a report times the original beside it.
    original = copy.deepcopy(subject.model) if check or (report is not None and not on_disk) else None
    given = {"latency_table": latency_table, "verify": "always", **settings}
    with _pruning(output, model, read, measures=_measures(given)) as read:
        result = prune_model(subject.model, subject.inputs, **{"calibration": read, **given})
    result = attrs.evolve(result, protocol=attrs.evolve(result.protocol, source=model, seed=known.seed))
    found = _checked(original, subject, result, registry) if check else None  # before anything is written
    if source is not None and out is not None:
        convert(output, source, out, result.plan, result.protocol, repaired=result.repaired)
    with output.working(f"writing {out}"):
        folder = goal.write(subject, result, registry)
    _write_texts(output, subject, result, original, plan, report)
    _show(output, subject, result, found, everything)
    _show_written(output, goal, folder, report, others=any((plan, report, save_recipe)))
    traced = decisions(result, registry, criteria_of(registry, typed)) if trace or save_recipe else []
    if trace:
        show_trace(output, traced)
    settings.update({key: typed[key] for key in criteria if typed[key] is not None})  # with arguments, not made of them
    finish(output, known, subject, settings, save_recipe, weights, data, distributions(traced, registry))
    told = {**load_tested(output, typed["serve"], folder, registry), **({"trace": trace_data(traced)} if trace else {})}
    output.result({**_data(subject, result, found, out, plan, report), **folder_data(folder), **told})


def _measures(settings: Mapping[str, Any]) -> bool:
    """Whether operations are timed: for a target on latency, unless a table says what they take."""
    return "latency" in (settings.get("target") or {}) and settings.get("latency_table") is None


def _check_together(
    ratio: float | None,
    targets: object,
    *,
    on_disk: bool,
    check: bool,
    component: str | None,
    recipes: Sequence[Path | None],
) -> None:
    """Raises an error for options that exclude each other; ``recipes`` are files to repeat and to write."""
    if ratio is not None and targets:
        raise ArgumentError("Give --ratio or --target, not both.")
    repeated = any(path is not None for path in recipes)
    if on_disk and (check or repeated):
        raise ArgumentError("--on-disk goes neither with --check nor with recipes.")
    if component is not None and repeated:
        raise ArgumentError("--component doesn't go with recipes.", hint="hf:FOLDER/COMPONENT names its folder")


def _check_weights(output: Output, subject: Subject, *, random: bool) -> None:
    """Raises an error for a folder without weights, and warns of random ones elsewhere."""
    if not subject.random or random:
        return
    if subject.name.startswith("hf:"):
        raise ArgumentError(
            "The folder holds no weights.",
            where=subject.name,
            why="it has a configuration, but no *.safetensors or pytorch_model*.bin",
            hint="save the model with model.save_pretrained(folder), give --weights FILE, or prune random weights with "
            "--random-weights",
        )
    output.warning(f"{subject.name} has random weights, so what goes means nothing: --weights FILE reads yours")


def _data_of(
    known: Recipe, typed: str | None, batch_size: int | None, limit: int | None, needing: Sequence[object]
) -> Data | None:
    """The calibration data: those that were typed, or those of the recipe.

    Args:
        known: The recipe.
        typed: Where the data come from, as typed.
        batch_size: Size of a batch, as typed.
        limit: The most batches, as typed.
        needing: Values of options that make no sense without data; None where they weren't typed.
    """
    if typed is not None:
        data = Data(typed, batch_size, limit)
    elif known.calibration:
        data = Data(known.checked_calibration(), batch_size or known.batch_size, limit or known.batches)
    elif any(value is not None for value in (batch_size, limit, *needing)):
        raise ArgumentError("Compensation, stages and batches need --calibration.")
    else:
        return None
    data.check(known.model)
    return data


@contextlib.contextmanager
def _pruning(output: Output, model: str, batches: Batches | None, *, measures: bool) -> Iterator[Batches | None]:
    """Shows progress while a model is pruned: batches of calibration data that were read, operations that were measured
    for a target on latency, if no table says what they take, or else a spinner.

    Yields:
        The batches, counted as they are read.
    """
    with contextlib.ExitStack() as stack:
        if measures:
            stack.enter_context(watched(stack.enter_context(output.tracked("measuring operations"))))
        elif batches is None:
            stack.enter_context(output.working(f"pruning {model}"))
        if batches is not None:
            batches = counted(batches, stack.enter_context(output.tracked("reading calibration data")))
        yield batches


def _check_files(
    plan: Path | None, report: Path | None, recipe: Path | None, table: Path | None, *, repeated: Path | None
) -> None:
    """Raises an error for a file that couldn't be written later, or a table that isn't there or beside a recipe."""
    check_there(table)
    if table is not None and (recipe or repeated) is not None:
        raise ArgumentError(
            "--latency-table doesn't go with recipes.",
            why="a recipe holds no such file, so that another machine would be timed when it is repeated",
            hint='in Python: prune(..., latency_table="FILE")',
        )
    if report is not None:
        check_report_path(report)
    for path, option in ((plan, "--plan"), (report, "--report"), (recipe, "--save-recipe")):
        if path is not None:
            check_writable(path, option)


def _write_texts(
    output: Output,
    subject: Subject,
    result: PruneResult,
    original: nn.Module | None,
    plan: Path | None,
    report: Path | None,
) -> None:
    """Writes the plan and the report, with the time of a forward pass before and after if the original is there."""
    if plan is not None:
        write_text(plan, result.plan.to_json())
    if report is None:
        return
    measured = {}
    if original is not None:
        models = [original, subject.model]
        with output.progress("timing the model for the report", ROUNDS + 1) as on:
            timings = side_by_side(models, subject.inputs, rounds=ROUNDS, warm_up=1, after_round=on)
        measured[LATENCY] = (1e3 * timings[0].median, 1e3 * timings[1].median)
    write_report(details(result, title=str(subject), measured=measured, random_weights=subject.random), report)


def _checked(original: Any, subject: Subject, result: PruneResult, registry: Registry) -> ExactCheck:
    """Checks the cut alone: compensation changes weights on purpose, so the plan is applied to a fresh copy then."""
    pruned = subject.model
    if result.compensation is not None:
        pruned = result.plan.apply(copy.deepcopy(original), registry=registry)
    free = result.graph.analysis.recordings[0].example.free_outputs
    found = check_exact(original, pruned, result.plan, subject.inputs, free_outputs=free, registry=registry)
    if not found:
        raise NotExactError("The pruned model is not exact; nothing was written.", where=subject.name, why=str(found))
    return found


def _show(output: Output, subject: Subject, result: PruneResult, check: ExactCheck | None, everything: bool) -> None:
    """Prints what was done, for people."""
    costs = {"params": (result.preview.params_before, result.preview.params_after), **result.preview.costs}
    rows = cost_rows(costs)
    output.table(Table(str(subject), ("cost", ">before", ">after", ">left"), rows))
    show_report(output, result.report, everything)
    output.line(str(result.verification), good=result.verification.check is not None)
    if result.compensation is not None:
        show_compensation(output, result.compensation)
    if check is not None:
        what = "" if result.compensation is None else "before compensation, "
        output.line(f"checked {what}against the original with the removed units zeroed: {check}", good=True)


def _show_written(
    output: Output, goal: Destination, folder: SavedFolder | None, report: Path | None, *, others: bool
) -> None:
    """Prints where the model is, and how it is opened; ``others`` says whether other files were written."""
    if goal.out is None:
        what = "the model wasn't" if others else "nothing was"
        output.line(f"{what} written: --out {'FOLDER' if goal.source else 'FILE'} keeps the smaller model")
    elif folder is not None:
        for line in str(folder).splitlines():
            output.line(line)
        size = sum(file.stat().st_size for file in folder.folder.rglob("*") if file.is_file())
        output.line(f"written: {folder.folder} ({size:,} bytes)", good=True)
    elif not goal.on_disk:
        output.line(f"written: {goal.out} ({goal.out.stat().st_size:,} bytes)", good=True)
    if report is not None:
        output.line(f"report: {report}", good=True)


def _data(
    subject: Subject,
    result: PruneResult,
    check: ExactCheck | None,
    out: Path | None,
    plan: Path | None,
    report: Path | None,
) -> dict[str, Any]:
    """What ``--json`` prints."""
    preview = result.preview
    return {
        "model": subject.name,
        "weights": subject.weights,
        "inputs": [str(spec) for spec in subject.specs],
        "params": {"before": preview.params_before, "after": preview.params_after},
        "bytes": {"before": preview.bytes_before, "after": preview.bytes_after},
        "costs": cost_data(preview.costs),
        "layers": {name: {"before": list(a), "after": list(b)} for name, (a, b) in result.layers.items()},
        **report_data(result.report),
        "compensation": None if result.compensation is None else attrs.asdict(result.compensation),
        "check": None
        if check is None
        else {
            "exact": check.exact,
            "error": check.error,
            "tolerance": check.tolerance,
            "inexact_groups": list(check.inexact),
        },
        "verification": {
            "error": None if result.verification.check is None else result.verification.check.error,
            "why": result.verification.why,
        },
        "protocol": json.loads(result.protocol.to_json()),
        "out": None if out is None else str(out),
        "plan": None if plan is None else str(plan),
        "report": None if report is None else str(report),
    }

"""``prunekit inspect``: the groups of a model, what is pinned and why, and what could be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import typer

from prunekit.plugin import BasePruner, Preview, PrunekitError, Report, UnitGroup
from prunekit_plugins.cli import options
from prunekit_plugins.cli.arguments import check_writable, read_inputs
from prunekit_plugins.cli.listing import report_data, show_left, show_rows
from prunekit_plugins.cli.models import Subject, build
from prunekit_plugins.cli.output import Output, Table, cost_data, cost_rows
from prunekit_plugins.cli.project import project_registry
from prunekit_plugins.cli.rules import rule_uses, rules_data, show_rules
from prunekit_plugins.reports import inspection_data, write_report
from prunekit_plugins.reports.data import branch_rows
from prunekit_plugins.reports.files import check_report_path

RATIO = 0.5


def inspect(
    model: options.Model,
    inputs: options.Inputs = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="Show which rule was used for each operation, and where it comes from.")
    ] = False,
    report: options.Report = None,
    block: options.Block = None,
    config: options.Config = None,
    plugin: options.Plugins = None,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """Show the groups of a model, what is pinned and why, and what could be saved."""
    specs = read_inputs(inputs or ())
    if report is not None:
        check_report_path(report)
        check_writable(report, "--report")
    output = Output(as_json)
    registry = project_registry(block, config, plugin)
    with output.working(f"building {model}"):
        subject = build(model, specs)
    with output.working(f"analysing {model}"):
        pruner = BasePruner(subject.model, subject.inputs, pruning_ratio=RATIO, registry=registry)
    groups = pruner.graph.groups()
    trial, obstacle = None, ""
    with output.working("trying half of the units"):
        try:
            trial = pruner.plan()
        except PrunekitError as error:  # the groups are worth showing all the same
            obstacle = str(error)
    preview = None if trial is None else trial.preview()
    reasons = _only_reasons(pruner.report(), preview)
    if report is not None:
        kept = None if trial is None else trial.kept
        details = inspection_data(
            pruner.graph, title=str(subject), report=reasons, preview=preview, kept=kept, random_weights=subject.random
        )
        write_report(details, report)
        rows = details.branches
    else:
        rows = branch_rows(pruner.graph, reasons)
    size = sum(parameter.numel() for parameter in subject.model.parameters())
    output.line(f"{subject}: {size:,} parameters, groups: {len(groups)}")
    show_rows(output, "groups", COLUMNS, [_row(group) for group in groups], everything)
    shown = [(r.name, r.kind, f"{r.params:,}", f"{r.macs:,}", r.why or "may go") for r in rows]
    show_rows(output, f"branches: {len(rows)}", BRANCH_COLUMNS, shown, everything)
    show_left(output, reasons, everything)
    uses = rule_uses(pruner.graph.analysis, registry) if rules else None
    if uses is not None:
        show_rules(output, uses)
    _show_saving(output, preview, obstacle)
    data = {**_data(subject, size, groups, reasons, preview, obstacle), "branches": [attrs.asdict(r) for r in rows]}
    if report is not None:
        output.line(f"report: {report}", good=True)
    output.result(data if uses is None else {**data, "rules": rules_data(uses)})


def _only_reasons(report: Report, preview: Preview | None) -> Report:
    """Takes the groups that half of the units could go from out of those left alone."""
    could = {} if preview is None else preview.groups
    return attrs.evolve(report, left={name: why for name, why in report.left.items() if name not in could})


COLUMNS = ("group", "kind", ">units", ">members", "removal is")
BRANCH_COLUMNS = ("branch", "kind", ">parameters", ">MACs", "removal")


def _row(group: UnitGroup) -> tuple[str, ...]:
    kind = f"{group.kind.value} (whole)" if group.outer else group.kind.value
    return (group.name, kind, str(group.size), str(len(group.members)), exactness(group))


def exactness(group: UnitGroup) -> str:
    """Says whether a group's removal equals zeroing it, and if not, which operations mix its units."""
    if not group.inexact:
        return "exact"
    names: dict[str, int] = {}
    for use in group.inexact:
        name = use.split(" ")[0].removeprefix("aten::")
        names[name] = names.get(name, 0) + 1
    return "not exact: " + ", ".join(f"{name} ({count} uses)" if count > 1 else name for name, count in names.items())


def _show_saving(output: Output, preview: Preview | None, obstacle: str) -> None:
    if preview is None:
        output.line(f"what could be saved isn't known: {obstacle}", good=False)
    elif not preview.groups:
        output.line("nothing can be pruned", good=False)
    else:
        costs: Mapping[str, tuple[float, float]] = {
            "params": (preview.params_before, preview.params_after),
            **preview.costs,
        }
        title = f"with {RATIO:.0%} of the units gone from each of {len(preview.groups)} groups"
        output.table(Table(title, ("cost", ">before", ">after", ">left"), cost_rows(costs)))


def _data(
    subject: Subject, size: int, groups: list[UnitGroup], report: Report, preview: Preview | None, obstacle: str
) -> dict[str, Any]:
    rest = {key: value for key, value in report_data(report).items() if key not in ("pruned", "mixes")}
    return {
        "model": subject.name,
        "inputs": [str(spec) for spec in subject.specs],
        "params": size,
        "groups": [
            {
                "name": group.name,
                "kind": group.kind.value,
                "units": group.size,
                "outer": group.outer,
                "exact": not group.inexact,
                "mixes": list(group.mixes),
                "members": [{"parameter": m.parameter, "dim": m.dim, "role": m.role.value} for m in group.members],
            }
            for group in groups
        ],
        **rest,
        "saving": None
        if preview is None
        else {
            "ratio": RATIO,
            "params": {"before": preview.params_before, "after": preview.params_after},
            "costs": cost_data(preview.costs),
            "groups": {name: {"before": a, "after": b} for name, (a, b) in preview.groups.items()},
        },
        "obstacle": obstacle or None,
    }

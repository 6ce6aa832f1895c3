"""Reports as listings: what was pruned, left on purpose, pinned, not understood, untouched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.plugin import Compensation, Report
from prunekit_plugins.cli.options.flags import words
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.reports.collapse import Row, collapse
from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.sections import sections

CACHE = re.compile(r"an output of the model: (cache|past_key_values|cache_params)\b.*")
"""The reason of dims that a cache pins, which is handed back to the model and may shrink."""


def show_rows(
    output: Output, title: str, columns: Sequence[str], rows: Sequence[Row], everything: bool = False
) -> None:
    """Shows a table whose first column holds names, lines of repeated blocks joined unless everything is wanted."""
    if not rows:
        return
    lines = [(1, row) for row in rows] if everything else collapse(rows)
    if any(count > 1 for count, _ in lines):
        shown = [(row[0], str(count), *row[1:]) for count, row in lines]
        output.table(Table(title, (columns[0], ">times", *columns[1:]), shown))
    else:
        output.table(Table(title, tuple(columns), [row for _, row in lines]))


def show_report(output: Output, report: Report, everything: bool = False) -> None:
    """Shows everything that a report says."""
    if report.absent or report.branches:
        gone, left = [(name,) for name in report.absent], _reasons(report.branches)
        show_rows(output, f"branches gone: {len(gone)} of {len(gone) + len(left)}", ("branch",), gone, everything)
        show_rows(output, f"branches left: {len(left)}", ("branch", "why"), left, everything)
    pruned = [(name, str(before), str(after)) for name, (before, after) in report.pruned.items()]
    show_rows(output, f"pruned: {len(pruned)} groups", ("group", ">units before", ">after"), pruned, everything)
    mixes = [(name, words(uses[0])) for name, uses in report.mixes.items()]
    title = f"not exact: {len(mixes)} pruned groups under a norm, softmax or mean"
    show_rows(output, title, ("group", "operation"), mixes, everything)
    show_left(output, report, everything)


def show_left(output: Output, report: Report, everything: bool = False) -> None:
    """Shows what a report says about everything that stays as it is."""
    left = _reasons(report.left)
    show_rows(output, f"left whole: {len(left)} groups", ("group", "why"), left, everything)
    pinned = _reasons(report.pinned)
    show_rows(output, f"pinned: {len(pinned)} parameter dims", ("parameter[dim]", "why"), pinned, everything)
    caches = sorted({name.group(1) for why in report.pinned.values() if (name := CACHE.fullmatch(why))})
    if caches:
        names = " ".join(f"--free-output {name}" for name in caches)
        output.line(f"a cache keeps its size like every output: {names} releases it (free_outputs in Python)")
    gaps = [(gap,) for gap in report.not_understood]
    show_rows(output, f"not understood: {len(gaps)} operations", ("operation",), gaps, everything)
    untouched = [(name,) for name in report.untouched]
    show_rows(output, f"used by no recording: {len(untouched)} parameters", ("parameter",), untouched, everything)
    for note in report.notes:
        output.line(f"note: {words(note)}")


def _reasons(why: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [(name, words(reason)) for name, reason in why.items()]


def show_compensation(output: Output, done: Compensation) -> None:
    """Shows what was repaired with calibration data, and what was left alone and why."""
    before, after = done.output_error
    rows = [(r.consumer, r.method, f"{r.before:.3g}", f"{r.after:.3g}", r.detail) for r in done.layers]
    title = f"compensated: {len(rows)} layers, output error {before:.3g} -> {after:.3g}"
    if rows:
        output.table(Table(title, ("layer", "method", ">error before", ">after", "detail"), rows))
    else:
        output.line(title)
    left = _reasons(done.left)
    show_rows(output, f"not compensated: {len(left)}", ("layer", "why"), left)
    for name, why in done.undone.items():
        output.line(f"undone: {name}: {why}")
    for note in done.notes:
        output.line(f"poor data: {words(note)}")


def report_data(report: Report) -> dict[str, Any]:
    """Makes a report into data for programs."""
    return {
        "branches": {"gone": list(report.absent), "left": dict(report.branches)},
        "pruned": {name: {"before": before, "after": after} for name, (before, after) in report.pruned.items()},
        "left": dict(report.left),
        "pinned": dict(report.pinned),
        "not_understood": list(report.not_understood),
        "untouched": list(report.untouched),
        "mixes": {name: list(uses) for name, uses in report.mixes.items()},
        "notes": list(report.notes),
    }


def print_report(data: ReportData, *, everything: bool = False) -> None:
    """Prints a report; needs the extra ``cli``.

    Args:
        data: The report.
        everything: List every row; otherwise lines of repeated blocks are joined.
    """
    output = Output()
    for section in sections(data):
        columns, rows = section.columns, section.rows
        if section.blocks and not everything:
            joined = collapse(rows)
            if any(count > 1 for count, _ in joined):
                columns = (columns[0], ">times", *columns[1:])
                rows = tuple((row[0], str(count), *row[1:]) for count, row in joined)
        output.table(Table(section.title, columns, rows))

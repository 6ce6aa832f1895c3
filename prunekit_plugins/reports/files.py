"""Writing a report to a file, in the form that its name asks for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prunekit import PruneResult
from prunekit.plugin import ArgumentError, Sensitivity, write_text
from prunekit_plugins.reports.data import Curves, Figures, ReportData, report_data
from prunekit_plugins.reports.markdown import to_markdown
from prunekit_plugins.reports.page import to_html

SUFFIXES = (".html", ".md", ".json")


def to_json(data: ReportData) -> str:
    """Renders a report as JSON, for programs."""
    return json.dumps(data.to_dict(), indent=1) + "\n"


def check_report_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a report.

    Raises:
        ArgumentError: Its suffix is none of ``.html``, ``.md`` and ``.json``.
    """
    found = Path(path)
    if found.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            "A report is a .html, .md or .json file.", where=str(found), hint="the suffix decides about the form"
        )
    return found


def write_report(
    result: PruneResult | ReportData,
    path: str | os.PathLike[str],
    *,
    sensitivity: Sensitivity | Curves | None = None,
    metric: str = "",
    measured: Figures | None = None,
) -> None:
    """Writes a report; the file appears whole or not at all.

    Args:
        result: What `prune` returned, or what `report_data` or `inspection_data` made.
        path: The file: ``.html`` for a page, ``.md`` for Markdown, ``.json`` for data.
        sensitivity, metric, measured: As for `report_data`; only with a result.

    Raises:
        ArgumentError: The suffix is another one.
    """
    place = check_report_path(path)
    data = result
    if isinstance(data, PruneResult):
        data = report_data(data, sensitivity=sensitivity, metric=metric, measured=measured)
    render = {".html": to_html, ".md": to_markdown, ".json": to_json}[place.suffix.lower()]
    write_text(place, render(data))

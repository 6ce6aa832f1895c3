"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.sections import Section, sections
from prunekit_plugins.reports.summary import RANDOM, sentence

LONG = 40
"""Rows beyond which a table is folded away."""


def to_markdown(data: ReportData) -> str:
    """Renders a report as Markdown (with tables, as GitHub and GitLab know them); long tables are folded away."""
    parts = [f"# {cell(data.title)}, {'pruned' if data.pruned else 'inspected'}", cell(sentence(data))]
    if data.verification:
        parts.append(f"{cell(data.verification)} ({data.made})")
    if data.random_weights:
        parts.append(f"**{RANDOM}**")
    for section in map(Section.joined, sections(data)):
        parts.append(f"## {section.title}")
        if section.about:
            parts.append(section.about)
        parts.append(_table(section))
    return "\n\n".join(parts) + "\n"


def _table(section: Section) -> str:
    columns, rows = section.columns, section.rows
    rule = "|".join("---:" if column.startswith(">") else "---" for column in columns)
    lines = [_line([column.lstrip(">") for column in columns]), f"|{rule}|", *map(_line, rows)]
    table = "\n".join(lines)
    if len(rows) <= LONG:
        return table
    return f"<details><summary>{len(rows)} rows</summary>\n\n{table}\n\n</details>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell(text) for text in cells)} |"


def cell(text: str) -> str:
    """Escapes what would be markup in a table."""
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([|*`~])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return " ".join(text.replace("](", "\\](").split())

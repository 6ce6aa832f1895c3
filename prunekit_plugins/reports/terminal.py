"""A report on the terminal: tables with colours, or plain text in a pipe."""

from __future__ import annotations

from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.reports.collapse import collapse
from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.sections import sections


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

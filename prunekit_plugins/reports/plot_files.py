"""The plots of a report, written into a folder."""

from __future__ import annotations

import os
from pathlib import Path

from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.plots import plot_macs, plot_sensitivity, plot_widths
from prunekit_plugins.reports.segments import bars_of
from prunekit_plugins.reports.tradeoff_plot import plot_tradeoffs


def save_plots(data: ReportData, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes ``macs.png``, ``widths.png`` and, where they are known, ``sensitivity.png`` and ``tradeoffs.png``.

    Args:
        data: The report.
        folder: Where they go; it must exist.

    Returns:
        The files.
    """
    plots = {"macs.png": plot_macs, "widths.png": plot_widths}
    if data.sensitivity:
        plots["sensitivity.png"] = plot_sensitivity
    if data.tradeoffs is not None and bars_of(data.tradeoffs):
        plots["tradeoffs.png"] = plot_tradeoffs
    written = []
    for name, plot in plots.items():
        plot(data).savefig(Path(folder) / name)
        written.append(Path(folder) / name)
    return written

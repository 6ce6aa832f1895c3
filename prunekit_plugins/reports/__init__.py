"""Reports about pruned and inspected models: one structure of data, rendered for the browser, as Markdown, as JSON."""

from prunekit_plugins.reports.data import GroupRow, LayerRow, MemberRow, ReportData, inspection_data, report_data
from prunekit_plugins.reports.files import to_json, write_report
from prunekit_plugins.reports.markdown import to_markdown
from prunekit_plugins.reports.page import to_html
from prunekit_plugins.reports.plot_files import save_plots
from prunekit_plugins.reports.plots import draw_group, plot_macs, plot_sensitivity, plot_widths
from prunekit_plugins.reports.tradeoff_plot import plot_tradeoffs

__all__ = [
    "GroupRow",
    "LayerRow",
    "MemberRow",
    "ReportData",
    "draw_group",
    "inspection_data",
    "plot_macs",
    "plot_sensitivity",
    "plot_tradeoffs",
    "plot_widths",
    "report_data",
    "save_plots",
    "to_html",
    "to_json",
    "to_markdown",
    "write_report",
]

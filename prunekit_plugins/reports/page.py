"""A report as one HTML page that needs nothing else: no fonts, no scripts, no pictures from elsewhere."""

from __future__ import annotations

import re
from html import escape

from prunekit_plugins.reports.data import GroupRow, ReportData
from prunekit_plugins.reports.rate_bars import RATES_LEGEND, rate_bars
from prunekit_plugins.reports.sections import Section, number, sections, share
from prunekit_plugins.reports.style import CSS, SCRIPT
from prunekit_plugins.reports.summary import LATENCY, RANDOM, readable, sentence

FOLDED = 30
"""Rows beyond which a section starts folded."""
CARDS = ("costs", "measured")
"""Sections that are shown as cards on top."""
OPEN = ("macs", "groups")
"""Sections that start open all the same; their tables scroll."""
FILTERED = 15
"""Rows beyond which a table has a field to filter it."""
BINS = 95
"""Bars of the strip that shows which units of a group stay."""
NAMES = ("layer", "group", "branch", "part", "parameter[dim]", "parameter", "operation", "what", "cost")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def to_html(data: ReportData) -> str:
    """Renders a report as a page for the browser, light or dark as the reader prefers."""
    found = [section.joined() for section in sections(data) if section.key not in CARDS]
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in found)
    body = "".join(_section(section, data) for section in found)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(data.title)}: pruning report</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(data.title)}</h1>
<p class="lead">{escape(sentence(data))}</p>
{_warning(data)}<p class="kicker">{escape(_origin(data))}</p>
{_cards(data)}
<nav>{links}</nav>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _warning(data: ReportData) -> str:
    return f'<p class="warning">{escape(RANDOM)}</p>' + "\n" if data.random_weights else ""


def _origin(data: ReportData) -> str:
    """When and with what the report was made, and how the cut was compared with the original."""
    made = f"{'Pruned' if data.pruned else 'Inspected'} with prunekit, {data.made}."
    return f"{made} {data.verification[0].upper()}{data.verification[1:]}." if data.verification else made


def _cards(data: ReportData) -> str:
    cards = [_cost_card(name, before, after, data) for name, (before, after) in data.costs.items()]
    cards += [_figure_card(name, before, after) for name, (before, after) in data.measured.items()]
    if data.pruned and not set(data.measured) - {LATENCY}:
        cards.append(
            '<div class="card slot"><div class="name">quality</div><div class="left">not measured</div>'
            '<div class="span">write_report(result, path, measured={"accuracy (%)": (before, after)})</div></div>'
        )
    return f'<div class="cards" id="costs">{"".join(cards)}</div>'


def _cost_card(name: str, before: float, after: float, data: ReportData) -> str:
    """How much of a cost is left, with a bar; the exact numbers show under the pointer."""
    unit = data.units.get(name, "")
    left = f"{share(after, before)} <small>{'left' if data.pruned or after < before else ''}</small>"
    exact = f"{number(before, unit)} to {number(after, unit)}"
    return (
        f'<div class="card" title="{escape(exact)}"><div class="name">{escape(name)}</div>'
        f'<div class="left">{left}</div><div class="bar">{_bar(before, after, before)}</div>'
        f'<div class="span">{_span(readable(before, unit), readable(after, unit))}</div></div>'
    )


def _figure_card(name: str, before: float, after: float) -> str:
    """A figure that was measured: what it is now, and what it was."""
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="left">{readable(after)}</div>'
        f'<div class="span">{_span(readable(before), readable(after))}</div></div>'
    )


def _span(before: str, after: str) -> str:
    return escape(before if before == after else f"{before} \N{RIGHTWARDS ARROW} {after}")


def _bar(before: float, after: float, most: float) -> str:
    outer = 100 * before / most if most else 0
    inner = 100 * after / before if before else 0
    return f'<div style="width:{outer:.1f}%"><div style="width:{inner:.1f}%"></div></div>'


def _section(section: Section, data: ReportData) -> str:
    rows = len(section.rows)
    opened = "" if rows > FOLDED and section.key not in OPEN else " open"
    about = f'<p class="about">{escape(section.about)}</p>' if section.about else ""
    legend = ""
    if section.bars or section.key == "groups":
        legend = (
            '<p class="legend"><i style="background:var(--left)"></i>stays'
            '<i style="background:var(--gone)"></i>goes</p>'
        )
    elif section.key == "tradeoffs":
        legend = RATES_LEGEND
    field = ""
    if rows > FILTERED:
        label = f"Filter {section.title.lower()}"
        field = (
            f'<input class="filter" type="search" placeholder="filter {rows} rows" aria-label="{escape(label)}" '
            f'data-table="table-{section.key}">'
        )
    return (
        f'<details class="section" id="{section.key}"{opened}><summary>{escape(section.title)}'
        f'<span class="count">{rows}</span></summary>{about}{legend}{field}{_table(section, data)}</details>\n'
    )


def _table(section: Section, data: ReportData) -> str:
    extra = ""
    drawn: list[str] = []
    if section.bars:
        most = max(before for before, _ in section.bars)
        extra, drawn = "<th></th>", [f'<td class="bar">{_bar(b, a, most)}</td>' for b, a in section.bars]
    elif section.key == "tradeoffs" and data.tradeoffs is not None:
        extra, drawn = (
            "<th>cheap to expensive</th>",
            [f'<td class="bar">{bar}</td>' for bar in rate_bars(data.tradeoffs)],
        )
    elif section.key == "groups":
        extra, drawn = "<th>which units</th>", [f"<td>{_strip(group)}</td>" for group in data.groups]
    heads = [
        f'<th{_class(column)} scope="col"><button type="button">{escape(column.lstrip(">"))}</button></th>'
        for column in section.columns
    ]
    lines = []
    for position, row in enumerate(section.rows):
        cells = list(map(_cell, section.columns, row))
        if section.key == "groups":
            cells = _group_cells(section.columns, row, data.groups[position])
        lines.append(f"<tr>{cells[0]}{drawn[position] if drawn else ''}{''.join(cells[1:])}</tr>")
    return (
        f'<div class="scroll"><table class="sortable" id="table-{section.key}"><thead><tr>{heads[0]}{extra}'
        f"{''.join(heads[1:])}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(column: str) -> str:
    return ' class="n"' if column.startswith(">") else ""


def _cell(column: str, text: str) -> str:
    kind = "n" if column.startswith(">") else "name" if column in NAMES else "text"
    return f'<td class="{kind}">{_broken(text) if kind == "name" else escape(text)}</td>'


def _broken(name: str) -> str:
    """Escapes a name and allows line breaks after dots and underscores."""
    return re.sub(r"([._])", r"\1<wbr>", escape(name))


def _group_cells(columns: tuple[str, ...], row: tuple[str, ...], group: GroupRow) -> list[str]:
    """The row of a group; its members and all operations that tie it unfold."""
    members = "".join(f"<li>{escape(f'{m.parameter}[{m.dim}] ({m.role})')}</li>" for m in group.members)
    ties = "".join(f"<li>{escape(use)}</li>" for use in group.ties)
    cells = []
    for column, text in zip(columns, row, strict=True):
        if column == "group":
            inner = f"{_broken(text)}<details><summary>members</summary><ul>{members}</ul></details>"
            cells.append(f'<td class="name">{inner}</td>')
        elif column == "tied by" and group.ties:
            inner = f"<details><summary>{escape(text)}</summary><ul>{ties}</ul></details>"
            cells.append(f'<td class="text">{inner}</td>')
        else:
            cells.append(_cell(column, text))
    return cells


def _strip(group: GroupRow) -> str:
    """A strip that shows where the units that stay were; wide groups are summed up in bars."""
    stay = set(group.kept) if group.kept else set(range(group.before))
    bins = min(BINS, group.before)
    edges = [group.before * position // bins for position in range(bins + 1)]
    path = []
    for position in range(bins):
        units = range(edges[position], edges[position + 1])
        height = 14 * sum(unit in stay for unit in units) / len(units)
        if height:
            path.append(f"M{position} {14 - height:g}h1v{height:g}h-1z")
    label = f"{len(stay)} of {group.before} units stay"
    return (
        f'<svg class="strip" viewBox="0 0 {bins} 14" preserveAspectRatio="none" role="img" aria-label="{label}" '
        f'shape-rendering="crispEdges"><rect width="{bins}" height="14"/><path d="{"".join(path)}"/></svg>'
    )

"""A report as tables of texts, which Markdown, HTML and the terminal lay out each in their way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from prunekit_plugins.reports.collapse import collapse
from prunekit_plugins.reports.data import GroupRow, LayerRow, ReportData

FEW = 8
"""Rows up to which nothing is joined."""


@attrs.frozen
class Section:
    """A table with a heading, or some lines of text.

    Attributes:
        key: A short name that is unique in the report.
        title: The heading.
        columns: Headings of the columns; those of numbers start with ``">"``. Empty for lines of text.
        rows: One text per column.
        about: A sentence about it.
        bars: Per row, (before, after) of what the section is about, for a bar beside the row; empty without bars.
        blocks: Whether names differ in numbers only, so that lines may be joined.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    about: str = ""
    bars: tuple[tuple[float, float], ...] = ()
    blocks: bool = False

    def joined(self) -> Section:
        """Returns the section with the lines of repeated blocks joined, where there are many lines."""
        if not self.blocks or len(self.rows) <= FEW:
            return self
        lines = collapse(self.rows)
        rows = tuple((row[0], str(count), *row[1:]) for count, row in lines)
        return attrs.evolve(self, columns=(self.columns[0], ">times", *self.columns[1:]), rows=rows)


def number(value: float, unit: str = "") -> str:
    """Words a number: whole ones with commas between thousands, others with four digits."""
    whole = abs(value) >= 1000 or float(value).is_integer()
    text = f"{value:,.0f}" if whole else f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def share(part: float, whole: float) -> str:
    """Words a fraction as percent; a dash where there is nothing to divide by."""
    return f"{part / whole:.1%}" if whole else "-"


def shape(sizes: tuple[int, ...] | None) -> str:
    """Words a shape: ``64 x 3 x 7 x 7``."""
    return "-" if sizes is None else " x ".join(map(str, sizes)) or "1"


def sections(data: ReportData) -> list[Section]:
    """Lays out everything that a report says; what is empty is left out."""
    left = [group for group in data.groups if group.why]
    found = [
        _costs(data),
        _figures(data),
        _macs(data),
        _layers(data),
        _branches(data),
        _groups(data),
        _experts(data),
        _axes(data),
        _tradeoffs(data),
        _table("left", "Left whole", ("group", "why"), [(g.name, g.why) for g in left], blocks=True,
               about="Groups that could have lost units, and why they didn't."),
        _table("pinned", "Pinned", ("parameter[dim]", "why"), list(data.pinned.items()), blocks=True,
               about="Parameter dims that can't shrink, and the operation that is to blame."),
        _table("not-understood", "Not understood", ("operation",), [(gap,) for gap in data.not_understood],
               about="Operations without a rule; what they touch is pinned."),
        _table("untouched", "Used by no recording", ("parameter",), [(name,) for name in data.untouched]),
        _repairs(data),
        _sensitivity(data),
        _table("notes", "Notes", ("note",), [(note,) for note in data.notes]),
        _protocol(data.protocol),
    ]  # fmt: skip
    return [section for section in found if section.rows]


def _table(
    key: str, title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], about: str = "", blocks: bool = False
) -> Section:
    return Section(key, title, columns, tuple(rows), about, blocks=blocks)


def _costs(data: ReportData) -> Section:
    rows = tuple(
        (name, number(before, data.units.get(name, "")), number(after, data.units.get(name, "")), share(after, before))
        for name, (before, after) in data.costs.items()
    )
    after = ">after" if data.pruned else ">after a trial"
    return Section("costs", "Cost", ("cost", ">before", after, ">left"), rows, bars=tuple(data.costs.values()))


def _figures(data: ReportData) -> Section:
    rows = tuple((name, number(before), number(after)) for name, (before, after) in data.measured.items())
    return Section("measured", "Measured", ("figure", ">before", ">after"), rows)


def _macs(data: ReportData) -> Section:
    """Where the multiply-accumulates were: layers that had any, the largest first."""
    total = sum(layer.macs[0] for layer in data.layers)
    saved = sum(layer.macs[0] - layer.macs[1] for layer in data.layers)
    heavy = sorted((layer for layer in data.layers if layer.macs[0]), key=lambda layer: -layer.macs[0])
    rows = tuple(
        (
            layer.name or "the model", number(layer.macs[0]), number(layer.macs[1]),
            share(layer.macs[1], layer.macs[0]), share(layer.macs[0], total),
            share(layer.macs[0] - layer.macs[1], saved),
        )
        for layer in heavy
    )  # fmt: skip
    columns = ("layer", ">MACs before", ">after", ">left", ">part of all", ">part of what was saved")
    about = "Multiply-accumulates of one forward pass on the example inputs, by the module that they run in."
    return Section("macs", "Where the MACs went", columns, rows, about, tuple((*layer.macs,) for layer in heavy))


def _layers(data: ReportData) -> Section:
    rows = tuple(_layer(layer) for layer in data.layers if layer.before is not None)
    columns = ("layer", "kind", "shape before", "after", ">parameters before", ">after", ">left")
    about = "The shape is that of the layer's largest parameter."
    return Section("layers", "Layers", columns, rows, about, blocks=True)


def _layer(layer: LayerRow) -> tuple[str, ...]:
    before, after = layer.params
    words = "same" if layer.before == layer.after else "gone" if layer.after is None else shape(layer.after)
    return (
        layer.name or "the model", layer.kind, shape(layer.before), words,
        number(before), number(after), share(after, before),
    )  # fmt: skip


def _branches(data: ReportData) -> Section:
    columns = ("branch", "kind", ">places", ">parameters", ">MACs", "what became of it")
    about = "What is added to something and could be switched off: the program goes on as if it were zero."
    words = "gone" if data.pruned else "may go"
    rows = tuple(
        (b.name, b.kind, number(b.sums), number(b.params), number(b.macs), b.why or ("gone" if b.gone else words))
        for b in data.branches
    )
    return Section("branches", "Branches", columns, rows, about, blocks=True)


def _groups(data: ReportData) -> Section:
    columns = ("group", "kind", ">units before", ">after", ">members", "removal is", "tied by")
    about = "Units that can only leave together: everything that is added up, concatenated or read alike."
    rows = tuple(
        (g.name, g.kind, number(g.before), number(g.after), number(len(g.members)), exactness(g), ties(g))
        for g in data.groups
    )
    return Section("groups", "Groups", columns, rows, about)


def _axes(data: ReportData) -> Section:
    """What each axis gave, and what the last and the next step cost."""
    found = data.tradeoffs
    rows = tuple(
        (a.axis, f"{a.used} of {a.items}", share(a.saved, 1.0), number(a.damage), _rate(a.last), _rate(a.next))
        for a in (() if found is None else found.axes)
    )
    about = "" if found is None else (
        f"Which part of {found.cost} each axis saved, and the damage ({found.metric}, by estimate) for one percent of "
        "it: that of the most expensive step that was taken, and of the cheapest that could be taken next."
    )  # fmt: skip
    columns = ("axis", "used", ">saved", ">damage", ">last, for each percent", ">next, for each percent")
    return Section("axes", "What each axis gave", columns, rows, about)


def _tradeoffs(data: ReportData) -> Section:
    """What each branch and each group could save, and what it would cost."""
    found = data.tradeoffs
    rows = tuple(
        (i.name, i.axis, share(i.saved[-1], 1.0), share(i.saved[i.taken], 1.0), number(i.damages[i.taken]),
         _rate(i.last), _rate(i.next))
        for i in (() if found is None else found.items)
    )  # fmt: skip
    about = "" if found is None else (
        f"What each part could save of {found.cost} alone, what was taken of it, and the damage ({found.metric}). The "
        "last two columns are the damage for one percent: of the last step that was taken, of the next one."
    )  # fmt: skip
    columns = ("part", "axis", ">could save", ">taken", ">damage", ">last", ">next")
    return Section("tradeoffs", "Damage against saving", columns, rows, about)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _experts(data: ReportData) -> Section:
    rows = tuple(
        (g.name, number(g.before), number(g.after), _numbers(g) or "none")
        for g in data.groups
        if g.kind in ("experts", "expert_groups")
    )
    columns = ("group", ">experts before", ">after", "gone" if data.pruned else "gone in a trial")
    about = "Experts by their numbers in the original; the notes name those that calibration never reached."
    return Section("experts", "Experts", columns, rows, about)


def _numbers(group: GroupRow) -> str:
    """Lists the units of a group that left."""
    return ", ".join(str(unit) for unit in range(group.before) if group.kept and unit not in group.kept)


def exactness(group: GroupRow) -> str:
    """Says whether a group's removal equals zeroing it."""
    return f"not exact: {operation(group.mixes[0])}" if group.mixes else "exact"


def operation(use: str) -> str:
    """Returns the short name of an operation: ``"layer_norm"`` for ``"aten::layer_norm in encoder.ln"``."""
    return use.partition(" in ")[0].removeprefix("aten::").partition(".")[0]


def ties(group: GroupRow, most: int = 3) -> str:
    """Names the kinds of operations that tie a group, most frequent first."""
    counts: dict[str, int] = {}
    for use in group.ties:
        counts[operation(use)] = counts.get(operation(use), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in ordered[:most])
    return shown + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _repairs(data: ReportData) -> Section:
    rows = tuple(
        (
            r.name,
            r.method or "left as it was cut",
            *("-" if e is None else f"{e:.3g}" for e in (r.before, r.after)),
            r.detail,
        )
        for r in data.repairs
    )
    columns = ("layer", "method", ">error before", ">after", "detail")
    about = "Weights that were fitted to calibration data after the cut."
    if data.output_error is not None:
        before, after = data.output_error
        about += f" Relative error of the model's outputs on them: {before:.3g} right after the cut, {after:.3g} now."
    return Section("repairs", "Compensation", columns, rows, about)


def _sensitivity(data: ReportData) -> Section:
    fractions = sorted({fraction for curve in data.sensitivity.values() for fraction in curve})
    rows = tuple(
        (name, *(number(curve[f]) if f in curve else "-" for f in fractions))
        for name, curve in data.sensitivity.items()
    )
    columns = ("group", *(f">{fraction:.0%} gone" for fraction in fractions))
    return Section(
        "sensitivity", "Sensitivity", columns, rows, f"What is lost when units of one group alone go: {data.metric}."
    )


def _protocol(protocol: Mapping[str, Any]) -> Section:
    rows = []
    for key, value in protocol.items():
        if key not in ("dense", "pruned") and value not in ("", None, {}):
            if isinstance(value, Mapping):
                text = ", ".join(f"{name} {_word(item)}" for name, item in value.items())
            else:
                text = _word(value)
            rows.append((key, text))
    return Section("protocol", "Protocol", ("what", "value"), tuple(rows), "How the result came about.")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""What a report says to somebody who reads one sentence of it."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit_plugins.reports.data import ReportData
from prunekit_plugins.reports.sections import share

NOUNS = {"macs": "multiply-accumulates", "params": "parameters"}
"""What the costs that a sentence names are called in words."""
SCALES = ((1e12, "tn", "TB"), (1e9, "bn", "GB"), (1e6, "M", "MB"), (1e3, "k", "kB"))
"""What large numbers are counted in, the largest first: of things, and of bytes."""
LATENCY = "latency (ms)"
"""What the figure that the command measures is called."""
RANDOM = "Random weights: what went, and what it costs in quality, means nothing."


def readable(value: float, unit: str = "") -> str:
    """Words a number with three digits and a prefix: ``11.2 M``, ``45.3 MB`` for bytes; small ones as they are."""
    for size, things, bytes_ in SCALES:
        if abs(value) >= size:
            digits = f"{value / size:.3g}"
            return f"{digits} {bytes_}" if unit == "bytes" else f"{digits} {things} {unit}".rstrip()
    return f"{value:.3g} {'B' if unit == 'bytes' else unit}".rstrip()


def sentence(data: ReportData) -> str:
    """Says in one sentence what was done to the model, or could be."""
    shares = [f"{share(after, before)} of its {NOUNS[name]}" for name, (before, after) in _counts(data).items()]
    left = " and ".join(shares)
    if not data.pruned:
        found = f"{len(data.groups)} groups of units and {len(data.branches)} branches were found"
        trial = f"; a trial keeps {left}" if any(a < b for b, a in data.costs.values()) else ""
        return f"{found}{trial}."
    return f"The smaller model keeps {left}: {_gone(data)}{_faster(data)}."


def _counts(data: ReportData) -> Mapping[str, tuple[float, float]]:
    return {name: data.costs[name] for name in NOUNS if name in data.costs}


def _gone(data: ReportData) -> str:
    """Counts the groups that lost units, and the branches that went."""
    smaller = sum(group.after < group.before for group in data.groups)
    words = [f"{smaller} of {len(data.groups)} groups of units lost some"] if smaller else []
    absent = sum(branch.gone for branch in data.branches)
    if absent:
        words.append(f"{absent} of {len(data.branches)} branches went whole")
    return " and ".join(words) or "nothing went"


def _faster(data: ReportData) -> str:
    before, after = data.measured.get(LATENCY, (0.0, 0.0))
    if not after:
        return ""
    times = before / after
    if times < 1.05:
        return f", and it isn't faster on this machine ({before:.3g} and {after:.3g} ms)"
    return f", and it runs {times:.2f} times as fast on this machine ({before:.3g} and {after:.3g} ms)"

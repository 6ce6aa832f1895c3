"""Verdicts and table of a sweep by depth (``zoo.py --depth``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

SEEN = 1e-4
"""Change of the outputs by a branch below which its comparison says little; see `zoo_depth`."""


def cuts(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what became of each set of branches."""
    yield from result.get("alone", ())
    if "half" in result:
        yield result["half"]


def verdict(result: dict[str, Any]) -> str:
    """``wrong`` or ``crash`` where any set of branches is; else what is known about the model.

    ``fails`` is an error or a limit before that, ``refused`` an error of prunekit's with the reason that the model's
    list holds to be true, and ``unbuilt`` a model that doesn't run here by itself. ``none`` has no branch that could
    go, ``stays`` branches of which each that was tried is refused; ``exact`` has at least one that goes. ``random`` is
    a model that returns something else each time, and ``blind`` one whose outputs no branch changes.
    """
    counted = Counter(cut["verdict"] for cut in cuts(result))
    if result.get("ran") is False:
        return "unbuilt"
    for word in ("wrong", "crash"):
        if counted[word]:
            return word
    if result.get("refused_for") and result["refused_for"] in result.get("refused", ""):
        return "refused"
    if "failed" in result:
        return "fails"
    if not counted:
        return "none"
    if counted["random"]:
        return "random"
    if not counted["exact"]:
        return "stays"
    seen = [cut.get("seen", 1.0) for cut in cuts(result) if cut["verdict"] == "exact"]
    return "exact" if max(seen) > SEEN else "blind"


def why(result: dict[str, Any]) -> str:
    """What is wrong in one line, else why branches stay, the commonest reason first."""
    for word in ("wrong", "crash"):
        for cut in cuts(result):
            if cut["verdict"] == word:
                text = cut.get("why") or f"error {cut.get('error', 0.0):.0e} in {cut.get('dtype', '')}"
                return _cell(f"{cut.get('branch', 'half')}: {text}")
    if "failed" in result:
        return _cell(result["failed"])
    reasons = Counter(cut["why"] for cut in cuts(result) if cut["verdict"] == "refused")
    reasons.update(result.get("stay", {}))
    parts = [result["undecoded"]] if result.get("undecoded") else []
    parts += [f"{count} {'stays' if count == 1 else 'stay'}: {text}" for text, count in reasons.most_common(2)]
    return _cell("; ".join(parts))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:170]


def _row(result: dict[str, Any]) -> list[str]:
    alone = Counter(cut["verdict"] for cut in result.get("alone", ()))
    half, errors = result.get("half", {}), [cut["error"] for cut in cuts(result) if "error" in cut]
    spent = result["branches_s"] / result["analysis_s"] if result.get("analysis_s") and "branches_s" in result else None
    return [
        f"{result['family']}:{result['model']}",
        verdict(result),
        str(result.get("branches", "")),
        str(result.get("offered", "") or ""),
        str(alone["exact"] or ""),
        str(alone["refused"] or ""),
        f"{half['count']} {half['verdict']}" if "count" in half else half.get("verdict", ""),
        "yes" if result.get("decoding") else "",
        f"{max(errors):.0e}" if errors else "",
        f"{spent:.2f}" if spent is not None else "",
        why(result),
    ]


def table(results: Iterable[dict[str, Any]]) -> str:
    """Markdown: counts for each family, and one line per model."""
    rows = sorted(results, key=lambda r: (r["family"], r["model"]))
    lines = []
    for family in dict.fromkeys(r["family"] for r in rows):
        known = [r for r in rows if r["family"] == family]
        models = ", ".join(f"{n} {word}" for word, n in Counter(map(verdict, known)).most_common())
        alone = Counter(cut["verdict"] for r in known for cut in r.get("alone", ()))
        halves = Counter(r["half"]["verdict"] for r in known if "half" in r)
        lines.append(f"- {family}: {len(known)} models, {models}; {alone.total()} branches alone, {_counts(alone)}; ")
        lines[-1] += (
            f"{halves.total()} random halves, {_counts(halves)}; {sum(bool(r.get('decoding')) for r in known)} decode."
        )
        own = sum("own" in cut for r in known for cut in cuts(r))
        lines[-1] += f" {own} were compared by `check_exact` only." if own else ""
    refusals = Counter(
        " ".join(cut["why"].split()[:1]) for r in rows for cut in r.get("alone", ()) if cut["verdict"] == "refused"
    )
    if refusals:
        lines.append("")
        lines.append("Refusals begin with: " + ", ".join(f"{word} {n}" for word, n in refusals.most_common(12)) + ".")
    lines += ["", "| model | verdict | branches | may go | alone: exact | refused | half | decodes | largest error |"]
    lines[-1] += " finding / analysis | why |"
    lines += ["|---|---|---:|---:|---:|---:|---|---|---:|---:|---|"]
    lines += [f"| {' | '.join(_row(r))} |" for r in rows]
    return "\n".join(lines)


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{n} {word}" for word, n in counted.most_common()) or "none"

"""Verdicts and table of a sweep by experts (``zoo.py --experts``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

SEEN = 1e-4
"""Change of the outputs by the experts that left below which a comparison says little."""
CUTS = ("uniform", "uneven")


def runs(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what became of each implementation of experts, by its name."""
    found: dict[str, dict[str, Any]] = result.get("implementations", {})
    return found


def cuts(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what became of each cut."""
    for run in runs(result).values():
        yield from (run[name] for name in (*CUTS, "stock") if name in run)


def found(result: dict[str, Any]) -> int:
    """How many layers' experts are found in each implementation."""
    return min((len(run.get("groups", ())) for run in runs(result).values()), default=0)


def verdict(result: dict[str, Any]) -> str:
    """``wrong`` or ``crash`` where any cut is; else what is known about the model.

    ``unbuilt`` doesn't run here, ``fails`` is an error or a limit before any cut. ``exact`` are models whose experts
    are all found, in each implementation, and go exactly; ``partly`` where some layers' experts stay, ``stays`` where
    all do, ``refused`` where a cut is. ``blind`` is a model whose outputs don't change.
    """
    counted = Counter(cut["verdict"] for cut in cuts(result))
    if result.get("ran") is False:
        return "unbuilt"
    for word in ("wrong", "crash"):
        if counted[word] or any(run.get("verdict") == word for run in runs(result).values()):
            return word
    if "failed" in result:
        return "fails"
    if found(result) == 0:
        return "stays"
    if counted["refused"]:
        return "refused"
    if max((cut.get("seen", 1.0) for cut in cuts(result) if cut["verdict"] == "exact"), default=0.0) < SEEN:
        return "blind"
    return "exact" if found(result) >= result.get("routers", 0) else "partly"


def why(result: dict[str, Any]) -> str:
    """What is wrong in one line, else why experts stay."""
    if "failed" in result:
        return _cell(result["failed"])
    texts = [run["why"] for run in runs(result).values() if run.get("verdict") == "crash"]
    texts += [reason for run in runs(result).values() for reason in run.get("pins", {}).values()]
    texts += [cut["why"] for cut in cuts(result) if cut.get("why")]
    return _cell("; ".join(dict.fromkeys(texts)))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:170]


def _row(result: dict[str, Any]) -> list[str]:
    errors = [cut["error"] for cut in cuts(result) if "error" in cut]
    by_name = [_one_word(run[name]["verdict"] for run in runs(result).values() if name in run) for name in CUTS]
    stock = _one_word(run["stock"]["verdict"] for run in runs(result).values() if "stock" in run)
    own = any("own" in cut for cut in cuts(result))
    return [
        str(result["model"]),
        verdict(result),
        f"{found(result)} of {max(found(result), result.get('routers', 0))}",
        ", ".join(name for name in runs(result)),
        *by_name,
        stock,
        f"{max(errors):.0e}" if errors else "",
        "; ".join(filter(None, ["compared by `check_exact` only" if own else "", why(result)])),
    ]


def _one_word(verdicts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(verdicts))


def table(results: Iterable[dict[str, Any]]) -> str:
    """Markdown: counts, and one line per model."""
    rows = sorted(results, key=lambda r: str(r["model"]))
    counted = Counter(map(verdict, rows))
    lines = [f"{len(rows)} models: " + ", ".join(f"{n} {word}" for word, n in counted.most_common()) + ".", ""]
    lines.append("| model | verdict | layers | implementations | uniform | uneven | stock | largest error | why |")
    lines.append("|---|---|---:|---|---|---|---|---:|---|")
    lines += [f"| {' | '.join(_row(r))} |" for r in rows]
    return "\n".join(lines)

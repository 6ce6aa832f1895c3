"""The tables and the plot of ``distillation.py``, from its rows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import quality_networks as networks
import quality_tasks as tasks

MARKS = (0.125, 0.25, 0.5, 1.0)
"""Parts of the steps after which the student is looked at."""
CUT = ", cut"
"""End of the name of a row of Torch-Pruning before its training."""
RIVALS = tuple(
    f"{criterion} {scope}" for criterion in ("magnitude", "taylor", "hessian") for scope in ("local", "global")
)
LABELS, DISTILLED = "labels", "logits"
OURS = (LABELS, DISTILLED, "logits, labels", "logits, hidden")
LEAST_GAP = 0.02
"""Nats of cross-entropy that a cut has to cost for the share of it that comes back to say anything."""
BITS = ("docs gpt",)
BEGIN, END = "<!-- tables of benchmarks/distillation.py -->", "<!-- end of tables -->"
PLOT = "distillation.svg"
ALTERNATIVE = (
    "Cross-entropy on held-out data against the steps of training, for every network and part of its MACs: "
    "from the cut on with labels, with logits, and for Torch-Pruning's best."
)


@attrs.frozen(eq=False)
class Cell:
    """All rows of one network at one part of its MACs.

    Attributes:
        network: Its name.
        target: The part.
        rows: Name of a row, then seed, to the row; those of the dense network among them.
    """

    network: str
    target: float
    rows: dict[str, dict[int, dict[str, Any]]]

    @property
    def bits(self) -> bool:
        """Whether the metric is bits per character, of which less is better."""
        return self.network in BITS

    def seeds(self) -> list[int]:
        """Those with all rows of prunekit, and where there are any of Torch-Pruning, with one of these."""
        rivals = set().union(*(self.rows.get(row, {}) for row in RIVALS))
        own = set.intersection(*(set(self.rows.get(row, {})) for row in ("dense", "cut", *OURS)))
        return sorted(own & rivals if rivals else own)

    def of(self, row: str, key: str) -> list[float]:
        """One value of a row, seed by seed; empty where a seed has none."""
        found = [self.rows.get(row, {}).get(seed, {}).get(key) for seed in self.seeds()]
        return [value for value in found if value is not None] if None not in found else []

    def rival(self) -> str:
        """Torch-Pruning's row with the best median after training, of those that all seeds have; empty for none."""
        there = [row for row in RIVALS if self.of(row, "metric")]
        return max(there, key=lambda row: self.sign() * statistics.median(self.of(row, "metric")), default="")

    def sign(self) -> float:
        """1 where more of the metric is better, else -1."""
        return -1.0 if self.bits else 1.0

    def shown(self, row: str) -> str:
        """The median of the metric over the seeds, ± half of what lies between the best and the worst."""
        values = self.of(row, "metric")
        if not values:
            return ""
        middle, spread = tasks.median_and_half_range(values)
        shown = (f"{middle:.2f}", f" ±{spread:.2f}") if self.bits else (f"{middle:.1%}", f" ±{100 * spread:.1f}")
        return "".join(shown[: len(values)])

    def leads(self, row: str, other: str) -> list[float]:
        """By how much a row is ahead of another one, on each seed: points of accuracy, or bits per character."""
        scale = -1.0 if self.bits else 100.0
        pairs = zip(self.of(row, "metric"), self.of(other, "metric"), strict=False)
        return [scale * (own - others) for own, others in pairs]

    def shares(self, row: str) -> list[float]:
        """Which part of the cross-entropy lost by the cut has come back at each mark, all seeds together."""
        dense, cut = (sum(self.of(name, "loss")) for name in ("dense", "cut"))
        lost = cut - dense
        curves = [self.rows[row][seed]["curve"] for seed in self.seeds()]
        return [] if lost < LEAST_GAP * len(curves) else [(cut - sum(at)) / lost for at in zip(*curves, strict=True)]


def cells(rows: Sequence[dict[str, Any]]) -> list[Cell]:
    """Sorts rows by network and part of the MACs, in the order of the quality benchmark."""
    found: dict[tuple[str, float], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault((row["network"], row["target"]), {}).setdefault(row["row"], {})[row["seed"]] = row
    made = []
    for name in networks.BUILDERS:
        dense = found.pop((name, 1.0), {})
        at = sorted((target for network, target in found if network == name), reverse=True)
        made += [Cell(name, target, {**dense, **found[name, target]}) for target in at]
    return [cell for cell in made if cell.seeds()]


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first two columns are text."""
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows)).replace("| --- | --- |", "|---|---|")


def results(found: Sequence[Cell]) -> str:
    """What every row is worth after its training."""
    rows = [
        [
            *(cell.network, f"{cell.target:.0%}", str(len(cell.seeds())), cell.shown("dense"), cell.shown("cut")),
            *map(cell.shown, OURS),
            *(cell.shown(cell.rival() + CUT), f"{cell.shown(cell.rival())} ({cell.rival()})" if cell.rival() else ""),
        ]
        for cell in found
    ]
    head = ("network", "MACs", "seeds", "dense", "cut", *OURS, "Torch-Pruning, cut", "trained on labels")
    return lines(head, rows)


PAIRS: tuple[tuple[str, Callable[[Cell], str], Callable[[Cell], str]], ...] = (
    ("logits over labels", lambda cell: DISTILLED, lambda cell: LABELS),
    ("labels over Torch-Pruning", lambda cell: LABELS, Cell.rival),
    ("logits over Torch-Pruning", lambda cell: DISTILLED, Cell.rival),
)


def margins(found: Sequence[Cell]) -> str:
    """Who is ahead of whom: medians of the differences on the same seed, and on how many seeds."""
    texts, rows = [], []
    for name, own, other in PAIRS:
        leads = [(cell, values) for cell in found if (values := cell.leads(own(cell), other(cell)))]
        several = [(cell, values) for cell, values in leads if len(values) > 1]
        beyond, within, behind = ([cell for cell, values in several if standing(values) == way] for way in (1, 0, -1))
        text = f"- *{name[0].upper()}{name[1:]}*: ahead by more than the spread in {len(beyond)} of {len(several)} rows"
        text += listed("; within it", within) + listed("; behind by more than it", behind)
        texts.append(f"{text}; {alone(leads)}." if alone(leads) else f"{text}.")
    for cell in found:
        columns = itertools.chain.from_iterable(margin(cell.leads(own(cell), other(cell))) for _, own, other in PAIRS)
        rows.append([cell.network, f"{cell.target:.0%}", *columns])
    head = ["network", "MACs", *itertools.chain.from_iterable((name, "seeds ahead") for name, _, _ in PAIRS)]
    return "\n".join(texts) + "\n\n" + lines(head, rows)


def standing(values: Sequence[float]) -> int:
    """1 for a lead beyond half of the range over the seeds, -1 for the contrary, else 0."""
    middle, spread = tasks.median_and_half_range(values)
    return (middle > spread) - (middle < -spread)


def alone(leads: Sequence[tuple[Cell, Sequence[float]]]) -> str:
    """What is to be said of rows with one seed, which have no spread."""
    single = [(cell, values[0]) for cell, values in leads if len(values) == 1]
    behind = [cell for cell, value in single if value <= 0]
    text = f"of {len(single)} rows with one seed ahead in {len(single) - len(behind)}" + listed("; not in", behind)
    return text if single else ""


def listed(text: str, found: Sequence[Cell]) -> str:
    return f"{text}: {', '.join(f'{cell.network} at {cell.target:.0%}' for cell in found)}" if found else ""


def margin(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    middle, spread = tasks.median_and_half_range(values)
    shown = f"{middle:+.2f} ±{spread:.2f}" if len(values) > 1 else f"{middle:+.2f}"
    return shown, f"{sum(value > 0 for value in values)} of {len(values)}"


def returns(found: Sequence[Cell]) -> str:
    """Which share of the cross-entropy that the cut has cost is back after parts of the steps."""
    rows = []
    for cell in found:
        lost = statistics.median(c - d for c, d in zip(cell.of("cut", "loss"), cell.of("dense", "loss"), strict=True))
        columns = [cell.shares(row) or [None] * len(MARKS) for row in (LABELS, DISTILLED)]
        values = ["" if value is None else f"{value:.0%}" for value in itertools.chain.from_iterable(columns)]
        rate = cell.rows[DISTILLED][cell.seeds()[0]]["rate"]
        rows.append([cell.network, f"{cell.target:.0%}", f"{lost:.3f}", f"{rate:g}", *values])
    marks = [*(f"1/{round(1 / part)}" for part in MARKS[:-1]), "all"]
    head = [
        "network",
        "MACs",
        "lost, nats",
        "rate",
        *(f"{row}, {mark}" for row in (LABELS, DISTILLED) for mark in marks),
    ]
    return lines(head, rows)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """All tables."""
    found = cells(rows)
    missing = [name for name in networks.BUILDERS if name not in {cell.network for cell in found}]
    note = f"Not measured: {', '.join(missing)}.\n\n" if missing else ""
    return f"{note}{results(found)}\n\n{margins(found)}\n\n{returns(found)}\n\n![{ALTERNATIVE}]({PLOT})"


def write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes the tables between the marks in a folder's ``distill.md``, and the plot beside it."""
    page = folder / "distill.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text(rows)}\n\n{END}{rest.partition(END)[2]}")
    plot(cells(rows), folder / PLOT)


def curves(cell: Cell) -> Iterator[tuple[str, str, list[float]]]:
    """Label, colour and medians over the seeds of the cross-entropy: of the cut, and at each mark."""
    rival = cell.rival()
    for label, colour, cut, row in (
        ("labels", "#d08a2e", "cut", LABELS),
        ("logits", "#0b6e99", "cut", DISTILLED),
        ("Torch-Pruning's best, labels", "#9aa5b5", rival + CUT, rival),
    ):
        if row:
            runs = [[cell.rows[cut][seed]["loss"], *cell.rows[row][seed]["curve"]] for seed in cell.seeds()]
            yield label, colour, [statistics.median(values) for values in zip(*runs, strict=True)]


def plot(found: Sequence[Cell], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "distillation", "svg.fonttype": "none"})  # the same rows, the same file
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    columns = list(dict.fromkeys(cell.network for cell in found))
    targets = sorted({cell.target for cell in found}, reverse=True)
    size = (2.7 * len(columns), 2.1 * len(targets) + 0.4)
    figure, panels = pyplot.subplots(len(targets), len(columns), figsize=size, squeeze=False, layout="constrained")
    for cell in found:
        panel = panels[targets.index(cell.target)][columns.index(cell.network)]
        for label, colour, values in curves(cell):
            panel.plot([0, *MARKS], values, color=colour, marker=".", linewidth=1.5, label=label)
        dense = statistics.median(cell.of("dense", "loss"))
        panel.axhline(dense, color="#3c4656", linewidth=0.8, linestyle=":", label="before the cut")
        panel.set_yscale("log")
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        for scale in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            scale("{x:g}")
        panel.set_title(f"{cell.network}, {cell.target:.0%}", fontsize=9)
        panel.set_xticks([0, 0.5, 1], ["cut", "half", "all steps"])
        panel.tick_params(labelsize=7, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    for row in panels:
        row[0].set_ylabel("cross-entropy, nats", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)

"""Measures what is left of networks right after the cut and after short training, and writes docs/quality.md.

    python benchmarks/quality.py                       everything; needs prunekit[demo,plots]
    python benchmarks/quality.py --quick               one seed, the two small digit networks, half of the MACs
    python benchmarks/quality.py --out docs            writes quality.md and its plots into a folder
    python benchmarks/quality.py --read a.json b.json --out docs       the same from raw data of earlier runs (--json)

Networks are trained here on data that is bundled or generated (see ``quality_tasks.py``). Each is cut to the same parts
of its MACs by prunekit and, in an environment of its own, by Torch-Pruning 1.6.1 (``quality_worker.py``), on the same
calibration samples; all models are measured by the same code. A row takes the largest model within its budget.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import environment
import quality_networks as networks
import quality_rival as rival
import quality_tasks as tasks
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import CalibratedImportance

TARGETS = (0.75, 0.5, 0.35, 0.25)
RETRAINED = (0.5, 0.25)
"""Parts of the MACs at which rows are also trained again, for `PART` of the full course."""
PART = 0.125
RATES = (0.5, 0.05)
"""Learning rates of the short course, as parts of the full one's: for each row the one counts whose model has the lower
loss on the calibration samples."""
SEEDS = (0, 1, 2, 3, 4)
BEGIN, END = "<!-- tables of benchmarks/quality.py -->", "<!-- end of tables -->"
DEFAULT = "default"
"""`prune` with calibration data and nothing else."""


def ours(task: tasks.Task, model: nn.Module, seed: int) -> dict[str, Callable[[nn.Module, float], None]]:
    """The variants of prunekit: name to a function that cuts a copy of a model to a part of its MACs, in place.

    The damages of ``dp`` are measured once and used for all targets; ``prune`` measures the same when left alone.
    """
    x, _ = task.calibration_data(seed)
    batches = list(x.split(64))
    measured: list[pk.Sensitivity] = []

    def damages() -> pk.Sensitivity:
        if not measured:
            criterion = CalibratedImportance(pk.calibrate(model, batches, parts=("covariances", "curvatures")))

            def compensated(small: nn.Module, plan: pk.Plan) -> None:
                pk.compensate(small, plan, batches, original=model, stages=1)

            found = pk.sensitivity(
                model, x[:1], batches, ratios=(0.25, 0.5, 0.75, 0.9), importance=criterion, finish=compensated
            )
            measured.append(found)
        return measured[0]

    def cut(**options: Any) -> Callable[[nn.Module, float], None]:
        def run(small: nn.Module, target: float) -> None:
            if options.get("allocation") == "dp":
                options["sensitivity"] = damages()
            pk.prune(small, x[:1], target={"macs": target}, **options)

        return run

    return {
        DEFAULT: cut(calibration=batches),
        "dp": cut(calibration=batches, allocation="dp"),
        "uniform": cut(calibration=batches, allocation="uniform"),
        "without curvatures": cut(calibration=batches, importance=CalibratedImportance(curvatures=False)),
        "by variance": cut(calibration=batches, importance="activation_variance"),
        "magnitude, compensated": cut(calibration=batches, importance="magnitude"),
        "not compensated": cut(calibration=batches, compensation=None, reestimate_batchnorm=False),
        "magnitude": cut(),
    }


@attrs.frozen
class Measurement:
    """One cut of one trained network.

    Attributes:
        network: Its name.
        seed: Of its training, and of the choice of calibration samples.
        tool: ``"prunekit"`` or ``"Torch-Pruning"``.
        method: What was done.
        target: Part of the MACs that was asked for.
        macs: Part of the MACs that was left, None where no cut within the target ran.
        metric: Accuracy or bits per character right after the cut.
        retrained: The same after short training; None where that isn't measured.
        seconds: What the cut took; None for Torch-Pruning's search.
    """

    network: str
    seed: int
    tool: str
    method: str
    target: float
    macs: float | None
    metric: float | None
    retrained: float | None = None
    seconds: float | None = None


class Bench:
    """Runs the measurements of one network.

    Args:
        name: Of the network.
        options: The command line.
        python: The interpreter of Torch-Pruning's environment.
    """

    def __init__(self, name: str, options: argparse.Namespace, python: Path) -> None:
        self.task, self._options, self._python = tasks.task(name), options, python
        self.dense: dict[int, float] = {}
        self.found: list[Measurement] = []

    def run(self, seed: int) -> None:
        model = self.task.trained(seed)
        self.dense[seed] = self.task.metric(model)
        x, _ = self.task.calibration_data(seed)
        macs = networks.count_macs(model, x[:1])
        cuts: list[tuple[Measurement, nn.Module | None]] = []
        for method, cut in ours(self.task, model, seed).items():
            if self._options.methods and method not in self._options.methods:
                continue
            for target in self._options.targets:
                small = copy.deepcopy(model)
                start = time.perf_counter()
                cut(small, target)
                taken = time.perf_counter() - start
                left = networks.count_macs(small, x[:1]) / macs
                row = Measurement(
                    self.task.name, seed, "prunekit", method, target, left, self.task.metric(small), seconds=taken
                )
                cuts.append((row, small))
        if not self._options.alone:
            cuts += self._theirs(model, seed)
        best = self._best([row for row, _ in cuts])
        self.found += [self._retrained(row, small, seed, best) for row, small in cuts]

    def _theirs(self, model: nn.Module, seed: int) -> list[tuple[Measurement, nn.Module | None]]:
        found = []
        for cut in rival.cuts(self._python, self.task, model, seed, self._options.targets):
            metric = None if cut.model is None else self.task.metric(cut.model)
            made = Measurement(self.task.name, seed, "Torch-Pruning", cut.method, cut.target, cut.macs, metric)
            found.append((made, cut.model))
        return found

    def _best(self, rows: Sequence[Measurement]) -> set[tuple[str, str, float]]:
        """The rows to train again: prunekit's default, and the better scope of each of Torch-Pruning's criteria."""
        chosen = {("prunekit", DEFAULT, target) for target in RETRAINED}
        for target in RETRAINED:
            for criterion in rival.CRITERIA:
                scopes = [
                    r
                    for r in rows
                    if r.tool != "prunekit" and r.target == target and r.method.startswith(criterion) and r.metric
                ]
                if scopes:
                    first = sorted(scopes, key=lambda r: r.metric or 0.0, reverse=not self.task.bits)[0]
                    chosen.add((first.tool, first.method, target))
        return chosen

    def _retrained(
        self, row: Measurement, small: nn.Module | None, seed: int, chosen: set[tuple[str, str, float]]
    ) -> Measurement:
        if small is None or self._options.no_retraining or (row.tool, row.method, row.target) not in chosen:
            return row
        x, y = self.task.calibration_data(seed)
        tried = []
        for rate in RATES:
            trained = copy.deepcopy(small)
            self.task.train(trained, seed + 100, PART, rate)
            with torch.no_grad():
                tried.append((float(networks.loss(trained(x), y).mean()), self.task.metric(trained)))
        return attrs.evolve(row, retrained=min(tried)[1])


# -- tables


def shown(values: Sequence[float | None], bits: bool) -> str:
    """The median over the seeds, and the spread: half of the distance between the best and the worst."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    middle, spread = statistics.median(there), (max(there) - min(there)) / 2
    text = f"{middle:.2f} ±{spread:.2f}" if bits else f"{middle:.1%} ±{100 * spread:.1f}"
    return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)} ran)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * 2 + ['---:'] * (len(head) - 2))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def collected(bench: Bench, attribute: str) -> dict[tuple[str, str], dict[float, list[Any]]]:
    """One attribute of the measurements: tool and method, then target, to the values over the seeds."""
    found: dict[tuple[str, str], dict[float, list[Any]]] = {}
    for row in bench.found:
        found.setdefault((row.tool, row.method), {}).setdefault(row.target, []).append(getattr(row, attribute))
    return found


def section(bench: Bench, targets: Sequence[float]) -> str:
    bits = bench.task.bits
    what = "bits per character, less is better" if bits else "accuracy"
    dense = shown(list(bench.dense.values()), bits)
    rows = [
        [tool, method, *(shown(values.get(target, []), bits) for target in targets)]
        for (tool, method), values in collected(bench, "metric").items()
    ]
    head = ["tool", "method", *(f"{target:.0%} of the MACs" for target in targets)]
    text = f"## {bench.task.name}\n\nDense: {dense} ({what}).\n\nRight after the cut:\n\n{table(head, rows)}\n"
    trained: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in bench.found:
        if row.retrained is not None:
            name = row.method if row.tool == "prunekit" else f"{row.method.split()[0]}, better scope"
            trained.setdefault((row.tool, name), {}).setdefault(row.target, []).append(row.retrained)
    again = [target for target in targets if target in RETRAINED]
    rows = [
        [tool, method, *(shown(values.get(target, []), bits) for target in again)]
        for (tool, method), values in trained.items()
    ]
    if rows:
        head = ["tool", "method", *(f"{target:.0%} of the MACs" for target in again)]
        text += f"\nAfter training again for an eighth of the course:\n\n{table(head, rows)}\n"
    return text


@attrs.frozen
class Lead:
    """How far prunekit's default is ahead of the best row of Torch-Pruning, in percent or bits per character.

    Attributes:
        network: Its name.
        target: Part of the MACs.
        cells: The first columns of its row.
        margin: Between the medians.
        half_range: Half of what lies between the best and the worst seed, of the row that varies more.
        deviation: The standard deviation over the seeds, likewise.
        least: The smallest lead on a single seed, over the best row of that seed.
    """

    network: str
    target: float
    cells: tuple[str, ...]
    margin: float
    half_range: float
    deviation: float
    least: float


def lead(bench: Bench, target: float) -> Lead | None:
    """Compares the two tools at one target; None where one of them has no row."""
    bits = bench.task.bits
    scale = -1.0 if bits else 100.0  # more is better from here on
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in bench.found:
        if row.target == target and row.metric is not None:
            found.setdefault((row.tool, row.method), {})[row.seed] = scale * row.metric
    mine = found.get(("prunekit", DEFAULT))
    theirs = {method: seeds for (tool, method), seeds in found.items() if tool != "prunekit"}
    if not mine or not theirs:
        return None
    best = max(theirs, key=lambda method: statistics.median(theirs[method].values()))
    pair = [list(seeds.values()) for seeds in (mine, theirs[best])]
    ours, others = ([value / scale for value in values] for values in pair)
    kept = statistics.median(ours) / statistics.median(bench.dense.values())
    part = f"{1 / kept:.0%}" if bits else f"{kept:.0%}"
    rivals = {seed: [seeds[seed] for seeds in theirs.values() if seed in seeds] for seed in mine}
    return Lead(
        bench.task.name,
        target,
        (bench.task.name, f"{target:.0%}", shown(ours, bits), part, f"{shown(others, bits)} ({best})"),
        margin=statistics.median(pair[0]) - statistics.median(pair[1]),
        half_range=max((max(values) - min(values)) / 2 for values in pair),
        deviation=max(statistics.stdev(values) if len(values) > 1 else 0.0 for values in pair),
        least=min(mine[seed] - max(values) for seed, values in rivals.items() if values),
    )


def margins(benches: Sequence[Bench], targets: Sequence[float]) -> str:
    """For every network and target: prunekit's default, the best row of Torch-Pruning, and what lies between."""
    leads = [found for bench in benches for target in targets if (found := lead(bench, target)) is not None]
    lines = []
    for measure, attribute in (("half of the range", "half_range"), ("the standard deviation", "deviation")):
        behind = [f"{x.network} at {x.target:.0%}" for x in leads if x.margin <= getattr(x, attribute)]
        text = f"Ahead by more than {measure} over the seeds in {len(leads) - len(behind)} of {len(leads)} rows"
        lines.append(f"{text}{'; not in: ' + ', '.join(behind) if behind else ''}.")
    lines.append(f"Ahead on each of the seeds in {sum(x.least > 0 for x in leads)} of {len(leads)} rows.")
    head = ("network", "MACs left", "prunekit", "of dense", "best of Torch-Pruning")
    numbers = ("margin", "half range", "deviation", "least")
    rows = [(*x.cells, *(f"{value:.2f}" for value in (x.margin, x.half_range, x.deviation, x.least))) for x in leads]
    return "\n\n".join([*lines, table((*head, *numbers), rows)])


def plot(benches: Sequence[Bench], targets: Sequence[float], file: Path) -> None:
    """Draws the metric against the MACs left, one panel per network, medians with the range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(benches), figsize=(4 * len(benches), 3.8), squeeze=False)
    for panel, bench in zip(panels[0], benches, strict=True):
        for (tool, method), values in collected(bench, "metric").items():
            mine = tool == "prunekit"
            if mine and method not in (DEFAULT, "magnitude"):
                continue
            points = [(t, [v for v in values.get(t, []) if v is not None]) for t in targets]
            points = [(t, v) for t, v in points if v]
            middle = [statistics.median(v) for _, v in points]
            bars = [[m - min(v) for m, (_, v) in zip(middle, points, strict=True)]]
            bars.append([max(v) - m for m, (_, v) in zip(middle, points, strict=True)])
            style = {"linewidth": 2.2, "marker": "o"} if mine else {"linewidth": 1, "linestyle": "--", "marker": "."}
            label = f"{tool} {method}"
            panel.errorbar([t for t, _ in points], middle, bars, label=label, capsize=2, **style)
        panel.axhline(statistics.median(bench.dense.values()), color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(bench.task.name, fontsize=10)
        panel.set_xlabel("part of the MACs left")
        panel.set_ylabel("bits per character" if bench.task.bits else "accuracy")
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = 4 if len(benches) > 1 else 2
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 * -(-len(labels) // columns), 1, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality after the cut, against Torch-Pruning 1.6.1.")
    parser.add_argument("--quick", action="store_true", help="one seed, the two small digit networks, half of the MACs")
    parser.add_argument("--networks", help=f"comma-separated, of: {', '.join(networks.BUILDERS)}")
    parser.add_argument("--methods", help="comma-separated names of prunekit's variants; all")
    parser.add_argument("--targets", help=f"comma-separated parts of the MACs ({','.join(map(str, TARGETS))})")
    parser.add_argument("--seeds", type=int, help=f"how many ({len(SEEDS)})")
    parser.add_argument("--no-retraining", action="store_true", help="only right after the cut")
    parser.add_argument("--alone", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--env", type=Path, default=environment.DEFAULT, help="Torch-Pruning's environment")
    parser.add_argument("--json", type=Path, help="file for the raw data")
    parser.add_argument("--read", type=Path, nargs="+", help="measure nothing, show these files of raw data")
    parser.add_argument("--out", type=Path, help="folder of quality.md, whose tables are written, and quality.png")
    options = parser.parse_args(arguments)
    chosen = options.networks or ("digits conv net,digits transformer" if options.quick else None)
    options.networks = chosen.split(",") if chosen else list(networks.BUILDERS)
    options.methods = options.methods.split(",") if options.methods else None
    targets = options.targets or ("0.5" if options.quick else None)
    options.targets = [float(value) for value in targets.split(",")] if targets else list(TARGETS)
    options.seeds = options.seeds or (1 if options.quick else len(SEEDS))
    unknown = [name for name in options.networks if name not in networks.BUILDERS]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}; known: {', '.join(networks.BUILDERS)}")
    return options


def read(files: Sequence[Path], options: argparse.Namespace) -> list[Bench]:
    """Makes benches of the raw data of earlier runs; of a network that is in several files, the last one counts."""
    found: dict[str, Bench] = {}
    for file in files:
        for name, raw in json.loads(file.read_text())["raw"].items():
            found[name] = Bench(name, options, Path())
            found[name].dense = {int(seed): value for seed, value in raw["dense"].items()}
            found[name].found = [Measurement(**row) for row in raw["rows"]]
    return [found[name] for name in networks.BUILDERS if name in found]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    show(read(options.read, options) if options.read else run(options), options)


def run(options: argparse.Namespace) -> list[Bench]:
    """Measures everything that was asked for."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    python, theirs = (Path(), "{}") if options.alone else environment.ensure(options.env)
    versions = {name: version(name) for name in ("torch", "prunekit")}
    print(f"Versions: prunekit with {versions}; Torch-Pruning with {theirs}.", file=sys.stderr)
    benches = []
    for name in options.networks:
        benches.append(Bench(name, options, python))
        for seed in range(options.seeds):
            print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                benches[-1].run(seed)
        if options.json:
            raw = {b.task.name: {"dense": b.dense, "rows": [attrs.asdict(r) for r in b.found]} for b in benches}
            options.json.write_text(json.dumps({"versions": versions, "theirs": json.loads(theirs), "raw": raw}))
        print(section(benches[-1], options.targets), flush=True)
    print(f"took {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return benches


def show(benches: Sequence[Bench], options: argparse.Namespace) -> None:
    """Prints how far ahead prunekit is, and writes the tables and the plot if a folder is given."""
    text = "\n".join(section(bench, options.targets) for bench in benches)
    if not options.alone:
        text = f"## Summary\n\n{margins(benches, options.targets)}\n\n{text}"
        print(margins(benches, options.targets))
    missing = [name for name in networks.BUILDERS if name not in {bench.task.name for bench in benches}]
    if missing:
        text = f"Not measured in this run: {', '.join(missing)}.\n\n{text}"
    if options.out:
        page = options.out / "quality.md"
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")
        plot(benches, options.targets, options.out / "quality.png")


if __name__ == "__main__":
    main()

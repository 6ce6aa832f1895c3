"""What is left of deep networks at the same MACs by depth, by width, and by both: prints a Markdown table.

    python benchmarks/depth_quality.py                      both networks, five seeds; needs prunekit[demo]
    python benchmarks/depth_quality.py --networks "deep docs gpt" --seeds 1 --targets 0.5
    python benchmarks/depth_quality.py --json depth.jsonl   also writes each measurement, and takes up where it stopped
    python benchmarks/depth_quality.py --table depth.jsonl  the table of an earlier run

A residual network learns digits (scikit-learn's), a decoder of six layers the documentation of Python's standard
library (see ``quality_tasks.py``). A cell is the mean over seeds and, behind it, the standard deviation, right after
the cut and after an eighth of the course of training at half of its rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import quality_networks as networks
import quality_tasks as tasks
import torch
from torch import Tensor, nn

import prunekit as pk

PART, SPEED = 0.125, 0.5
"""The short course: parts of the steps and of the learning rate of the full one."""


class DeepResNet(nn.Module):
    """Nine basic blocks for images of 8 by 8."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(*(networks.Block(width, width, 1) for _ in range(4)))
        self.stage2 = nn.Sequential(
            networks.Block(width, 2 * width, 2), *(networks.Block(2 * width, 2 * width, 1) for _ in range(4))
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[batch, 10]``."""
        logits: Tensor = self.head(self.stage2(self.stage1(self.stem(images))).mean((2, 3)))
        return logits


networks.BUILDERS |= {
    "deep digits resnet": DeepResNet,
    "deep docs gpt": lambda: networks.CharGPT(width=48, heads=4, depth=6),
}
TASKS: Mapping[str, Callable[[], tasks.Task]] = {
    "deep digits resnet": lambda: attrs.evolve(tasks.task("digits conv net"), name="deep digits resnet", steps=250),
    "deep docs gpt": lambda: attrs.evolve(tasks.task("docs gpt"), name="deep docs gpt", steps=500),
}
Cut = Callable[[nn.Module, Tensor, float], None]
"""Cuts a model in place: the model, calibration samples, and the part of its MACs that stays."""


def _cut(**options: Any) -> Cut:
    def run(model: nn.Module, x: Tensor, target: float) -> None:
        pk.prune(model, x[:1], target={"macs": target}, calibration=list(x.split(64)), **options)

    return run


def _both(model: nn.Module, x: Tensor, target: float) -> None:
    """Depth takes the model to the root of the target, width the rest of the way."""
    whole = networks.count_macs(model, x[:1])
    _cut(by="depth")(model, x, target**0.5)
    _cut()(model, x, target * whole / networks.count_macs(model, x[:1]))


METHODS: Mapping[str, Cut] = {
    "width": _cut(),
    "width, not compensated": _cut(compensation=None, reestimate_batchnorm=False),
    "depth": _cut(by="depth"),
    "depth by block influence": _cut(by="depth", branch_importance="block_influence"),
    "depth and width": _both,
}
"""Rows of the table; one more way to cut is one more entry."""


def measured(task: tasks.Task, seed: int, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Trains a network, or takes it from the folder of trained ones, and cuts it in every way."""
    model = task.trained(seed)
    x, _ = task.calibration_data(seed)
    whole, rows = networks.count_macs(model, x[:1]), []
    about = {"network": task.name, "seed": seed, "bits": task.bits, "full": task.metric(model)}
    for target in targets:
        for method, cut in METHODS.items():
            small = copy.deepcopy(model)
            row = {**about, "target": target, "method": method}
            try:
                cut(small, x, target)
            except pk.PrunekitError as error:
                rows.append({**row, "why": str(error.headline)})
                continue
            row |= {"macs": networks.count_macs(small, x[:1]) / whole, "after": task.metric(small)}
            task.train(small, 1000 + seed, PART, SPEED)
            rows.append({**row, "trained": task.metric(small)})
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def _shown(values: Sequence[float], bits: bool) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.2f}" if bits else f"{mean:.1%}"
    spread = statistics.stdev(values)
    return f"{mean:.2f} ± {spread:.2f}" if bits else f"{mean:.1%} ± {spread:.1%}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a table for each network."""
    lines: list[str] = []
    for network in dict.fromkeys(row["network"] for row in rows):
        known = [row for row in rows if row["network"] == network]
        bits = known[0]["bits"]
        seeds = dict.fromkeys(row["seed"] for row in known)
        full = [next(row["full"] for row in known if row["seed"] == seed) for seed in seeds]
        unit = "bits per character, less is better" if bits else "accuracy"
        lines += ["", f"{network}, {unit}, {len(seeds)} seeds; uncut {_shown(full, bits)}:", ""]
        lines += ["| MACs asked for | cut by | MACs left | right after the cut | after a short course |"]
        lines += ["|---:|---|---:|---:|---:|"]
        for target in dict.fromkeys(row["target"] for row in known):
            for method in METHODS:
                found = [r for r in known if r["target"] == target and r["method"] == method and "macs" in r]
                left = f"{statistics.fmean(r['macs'] for r in found):.0%}" if found else "-"
                cells = [_shown([r[key] for r in found], bits) for key in ("after", "trained")]
                lines.append(f"| {target:.0%} | {method} | {left} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def _read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if path and Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.75, 0.5])
    parser.add_argument("--json", default="", help="file to which the measurements are appended")
    parser.add_argument("--table", default="", help="print the table of such a file")
    args = parser.parse_args()
    if args.table:
        print(table(_read(args.table)))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = _read(args.json)
    done = {(row["network"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for name in args.networks.split(","):
            if (name, seed) in done:
                continue
            found = measured(TASKS[name](), seed, args.targets)
            rows += found
            if args.json:
                with Path(args.json).open("a") as file:
                    file.writelines(f"{json.dumps(row)}\n" for row in found)
    print(table(rows))


if __name__ == "__main__":
    main()

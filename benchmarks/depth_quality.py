"""What is left of deep networks at the same MACs by depth, by width, and by both: prints a Markdown table.

    python benchmarks/depth_quality.py                      both networks, five seeds; needs prunekit[demo]
    python benchmarks/depth_quality.py --networks "deep docs gpt" --seeds 1 --targets 0.5
    python benchmarks/depth_quality.py --json depth.jsonl   also writes each measurement, and takes up where it stopped
    python benchmarks/depth_quality.py --table depth.jsonl  the table of an earlier run

A residual network learns digits (scikit-learn's), a decoder of six layers the documentation of Python's standard
library (see ``quality_tasks.py``). Branches go first; units, or both, then save what these branches saved. Each cut is
made twice: *fitted*, as `prune` does with calibration data, and *plain*, the same plan on the weights as they were. A
cell is the median over seeds and, behind it, half of the range, right after the cut and after an eighth of the course
of training at half of its rate.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import quality_networks as networks
import quality_tasks as tasks
import torch
from rows import append, parser, read, show
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


def decoder() -> nn.Module:
    """Builds a decoder of six layers; what is added to its stream starts small, as in GPT-2: it learns sooner."""
    model = networks.CharGPT(width=32, heads=4, depth=6)
    small = [model.tokens, model.positions]
    small += [linear for layer in model.layers for linear in (layer.attention.proj, layer.mlp[2])]
    with torch.no_grad():
        for module in small:
            module.weight *= 0.1 if isinstance(module, nn.Embedding) else 0.3
    return model


networks.BUILDERS |= {"deep digits resnet": DeepResNet, "deep docs gpt": decoder}
TASKS: Mapping[str, Callable[[], tasks.Task]] = {
    "deep digits resnet": lambda: attrs.evolve(tasks.task("digits conv net"), name="deep digits resnet", steps=250),
    "deep docs gpt": lambda: attrs.evolve(
        tasks.task("docs gpt"), name="deep docs gpt", batch=16, steps=1500, rate=1e-2
    ),
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "depth": {"by": "depth"},
    "depth by block influence": {"by": "depth", "branch_importance": "block_influence"},
    "width": {"by": "width"},
    "both": {"by": "both"},
}
"""Rows of the table: arguments of `prune`; one more way to cut is one more entry."""
FIRST, FOLLOWING = "depth", ("width", "both")
"""The one that goes first, and those that are then asked for the MACs that it left: branches rarely leave just what was
asked for.
"""
FORMS = ("plain", "fitted")


def measured(task: tasks.Task, seed: int, target: float) -> Iterator[dict[str, Any]]:
    """Trains a network, or takes it from the folder of trained ones, and cuts it in every way."""
    model = task.trained(seed)
    x, _ = task.calibration_data(seed)
    whole, wanted = networks.count_macs(model, x[:1]), target
    about = {"network": task.name, "seed": seed, "bits": task.bits, "full": task.metric(model), "target": target}
    for method, options in METHODS.items():
        fitted, plain, start = copy.deepcopy(model), copy.deepcopy(model), time.process_time()
        result = pk.prune(
            fitted,
            x[:1],
            target={"macs": wanted if method in FOLLOWING else target},
            calibration=list(x.split(64)),
            **options,
        )
        row = {**about, "method": method, "seconds": time.process_time() - start, "branches": len(result.plan.absent)}
        result.plan.apply(plain)
        left = networks.count_macs(fitted, x[:1])
        assert networks.count_macs(plain, x[:1]) == left
        if method == FIRST:
            wanted = left / whole
        row["macs"] = left / whole
        for form, small in zip(FORMS, (plain, fitted), strict=True):
            row[f"{form} after"] = task.metric(small)
            task.train(small, 1000 + seed, PART, SPEED)
            row[f"{form} trained"] = task.metric(small)
        yield row


def _shown(values: Sequence[float], bits: bool) -> str:
    """The median and half of the range."""
    if not values:
        return "-"
    found = [f"{value:.2f}" if bits else f"{100 * value:.1f}" for value in tasks.median_and_half_range(values)]
    return " ± ".join(found) if len(values) > 1 else found[0]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a table for each network."""
    lines: list[str] = []
    for network in dict.fromkeys(row["network"] for row in rows):
        known = [row for row in rows if row["network"] == network]
        bits = known[0]["bits"]
        full = list({row["seed"]: row["full"] for row in known}.values())
        unit = "bits per character, less is better" if bits else "accuracy in %"
        lines += ["", f"{network}, {unit}, {len(full)} seeds; uncut {_shown(full, bits)}:", ""]
        lines += ["| MACs asked for | cut by | branches gone | MACs left | after the cut: plain | fitted |"]
        lines[-1] += " after a short course: plain | fitted |"
        lines += ["|---:|---|---:|---:|---:|---:|---:|---:|"]
        for target in dict.fromkeys(row["target"] for row in known):
            for method in METHODS:
                found = [row for row in known if row["target"] == target and row["method"] == method]
                if found:
                    counts = sorted({row["branches"] for row in found})
                    gone = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
                    left = f"{statistics.median(row['macs'] for row in found):.0%}"
                    keys = (f"{form} {when}" for when in ("after", "trained") for form in FORMS)
                    cells = " | ".join(_shown([row[key] for row in found], bits) for key in keys)
                    lines.append(f"| {target:.0%} | {method} | {gone} | {left} | {cells} |")
    return "\n".join(lines).strip()


def main() -> None:
    given = parser(__doc__, (0.75, 0.5))
    given.add_argument("--networks", default=",".join(TASKS))
    args = given.parse_args()
    if args.table:
        print(table(read(args.table)))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = read(args.json)
    done = {(row["network"], row["seed"], row["target"]) for row in rows}
    for seed, name, target in itertools.product(range(args.seeds), args.networks.split(","), args.targets):
        if (name, seed, target) in done:
            continue
        found = []
        for row in measured(TASKS[name](), seed, target):
            show(row)
            found.append(row)
        rows += found
        append(args.json, found)
    print(table(rows))


if __name__ == "__main__":
    main()

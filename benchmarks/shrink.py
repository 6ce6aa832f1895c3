"""Measures in how many cuts a target is best reached when the training steps in all are the same.

    python benchmarks/shrink.py                       needs prunekit[demo]
    python benchmarks/shrink.py --seeds 1 --networks "digits conv net"

Networks and data are those of ``quality.py``. Each is trained with several seeds and shrunk to parts of its MACs by
``shrink(model, x, target={"macs": t}, calibration=batches, train=..., steps=n)``, with a part of the full course as
training steps in all, on the same batches.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import quality_tasks as tasks
import torch
from distillation import NETWORKS, TARGETS, entropy

import prunekit as pk

CUTS = (1, 2, 4)
PART = 0.25
"""Training steps in all, as a part of the full course."""
RATE = 0.5
"""The learning rate, as a part of the full course's."""


def measured(name: str, seed: int, targets: Sequence[float], part: float) -> Iterator[dict[str, object]]:
    task = tasks.task(name)
    model = task.trained(seed)
    x, _ = task.calibration_data(seed)
    steps, generator = max(1, round(task.steps * part)), torch.Generator().manual_seed(seed + 100)
    train = [task.sample(task.batch, generator)[0] for _ in range(steps)]
    for target in targets:
        for cuts in CUTS:
            result = pk.shrink(
                model, x[:1], target={"macs": target}, calibration=list(x.split(64)), train=train, steps=cuts,
                distill={"steps": steps, "lr": RATE * task.rate, "warm_up": 0.1}, seed=seed,
            )  # fmt: skip
            own = {"network": name, "seed": seed, "target": target, "cuts": cuts}
            yield own | {"metric": task.metric(result.model), "loss": entropy(result.model, task.held_out)}


def table(rows: Sequence[dict[str, object]]) -> str:
    """Medians over the seeds, half of the distance between the best and the worst, and seeds ahead of a single cut."""
    lines = [
        "| network | MACs | cuts | accuracy | cross-entropy | ahead of one cut |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    one = {(r["network"], r["target"], r["seed"]): float(str(r["loss"])) for r in rows if r["cuts"] == 1}
    cases = sorted({(str(r["network"]), -float(str(r["target"])), int(str(r["cuts"]))) for r in rows})
    for network, wanted, cuts in cases:
        same = [r for r in rows if (r["network"], r["target"], r["cuts"]) == (network, -wanted, cuts)]
        columns = [[float(str(row[key])) for row in same] for key in ("metric", "loss")]
        middle, spread = zip(*map(tasks.median_and_half_range, columns), strict=True)
        ahead = sum(float(str(row["loss"])) < one[network, -wanted, row["seed"]] for row in same)
        lines.append(
            f"| {network} | {-wanted:.0%} | {cuts} | {middle[0]:.1%} ±{100 * spread[0]:.1f} "
            f"| {middle[1]:.3f} ±{spread[1]:.3f} | {'' if cuts == 1 else f'{ahead} of {len(same)}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="In how many cuts a target is best reached.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated names of quality_networks.py")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="parts of the MACs that are left")
    parser.add_argument("--part", type=float, default=PART, help="training steps, as a part of the full course")
    parser.add_argument("--json", type=Path, help="file for the raw data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    rows: list[dict[str, object]] = []
    targets = [float(target) for target in options.targets.split(",")]
    for seed in range(options.seeds):
        for name in options.networks.split(","):
            for row in measured(name, seed, targets, options.part):
                rows.append(row)
                print(json.dumps(row), f"after {time.process_time() - start:.0f} s of processor time", flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

"""Measures what short training brings back after a cut: with labels, with the teacher's logits, with hidden states.

    python benchmarks/distillation.py                       needs prunekit[demo]
    python benchmarks/distillation.py --seeds 1 --networks "digits conv net"

Networks, data and cuts are those of ``quality.py``: trained with several seeds, cut to parts of their MACs by
``prune(model, x, target={"macs": t}, calibration=batches)``, and trained for the same number of steps (an eighth of the
full course) on the same batches with the same optimizer. Only the losses differ. Every row is trained with two learning
rates; the one counts whose own loss is lower at its end on the calibration samples.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import quality_networks as networks
import quality_tasks as tasks
import torch
from torch import Tensor, nn

import prunekit as pk

NETWORKS = ("digits conv net", "digits transformer")
TARGETS = (0.5, 0.25, 0.12)
PART = 0.125
RATES = (0.5, 0.05)
"""Learning rates, as parts of the full course's."""
ROWS = {
    "labels": {"labels": 1.0},
    "logits": {"logits": 1.0},
    "logits, labels": {"logits": 1.0, "labels": 0.2},
    "logits, hidden": {"logits": 1.0, "hidden": 1.0},
}


def entropy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The mean cross-entropy on labelled data, in nats."""
    model.eval()
    with torch.inference_mode():
        return float(networks.loss(model(data[0]), data[1]).mean())


def layers(model: nn.Module, plan: pk.Plan, x: Tensor) -> list[str] | None:
    """Modules whose outputs are compared: blocks where there are any, else the convolutions."""
    if pk.Graph.of(model, x).branches():
        return None
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def healed(
    task: tasks.Task, student: nn.Module, teacher: nn.Module, plan: pk.Plan, row: str, seed: int
) -> tuple[float, float]:
    """Trains copies of a student with each rate; returns accuracy and cross-entropy on held-out data."""
    steps, generator = max(1, round(task.steps * PART)), torch.Generator().manual_seed(seed + 100)
    batches = pk.Batches([task.sample(task.batch, generator) for _ in range(steps)], inputs=lambda batch: batch[0])
    known = pk.Batches([task.calibration_data(seed)], inputs=lambda batch: batch[0])
    named = layers(teacher, plan, task.calibration_data(seed)[0][:2]) if "hidden" in ROWS[row] else None
    found = []
    for rate in RATES:
        trained = copy.deepcopy(student)
        result = pk.distill(
            trained, teacher, batches, plan=plan, weights=ROWS[row], hidden=named, labels=lambda batch: batch[1],
            steps=steps, lr=rate * task.rate, warm_up=0.1, held_out=known, evaluate_every=steps, seed=seed,
        )  # fmt: skip
        found.append((result.held_out[-1][1], task.metric(trained), entropy(trained, task.held_out)))
    return min(found)[1:]


def measured(name: str, seed: int) -> list[dict[str, object]]:
    task = tasks.task(name)
    teacher = task.trained(seed)
    x, _ = task.calibration_data(seed)
    rows = [measurement(name, seed, 1.0, "dense", task.metric(teacher), entropy(teacher, task.held_out))]
    for target in TARGETS:
        student = copy.deepcopy(teacher)
        plan = pk.prune(student, x[:1], target={"macs": target}, calibration=list(x.split(64))).plan
        rows.append(measurement(name, seed, target, "cut", task.metric(student), entropy(student, task.held_out)))
        for row in ROWS:
            rows.append(measurement(name, seed, target, row, *healed(task, student, teacher, plan, row, seed)))
    return rows


def measurement(network: str, seed: int, target: float, row: str, metric: float, loss: float) -> dict[str, object]:
    return {"network": network, "seed": seed, "target": target, "row": row, "metric": metric, "loss": loss}


def table(rows: Sequence[dict[str, object]]) -> str:
    """Medians over the seeds, half of the distance between the best and the worst, and seeds ahead of labels."""
    lines = [
        "| network | MACs | trained on | accuracy | cross-entropy | ahead of labels |",
        "|---|---|---|---:|---:|---:|",
    ]
    loss = {(r["network"], r["target"], r["row"], r["seed"]): float(str(r["loss"])) for r in rows}
    for network, target, row in dict.fromkeys((r["network"], r["target"], r["row"]) for r in rows):
        same = [r for r in rows if (r["network"], r["target"], r["row"]) == (network, target, row)]
        columns = [[float(str(r[key])) for r in same] for key in ("metric", "loss")]
        middle, spread = zip(*map(tasks.median_and_half_range, columns), strict=True)
        labels = [loss.get((network, target, "labels", r["seed"])) for r in same]
        ahead = sum(other is not None and own < other for own, other in zip(columns[1], labels, strict=True))
        compared = f"{ahead} of {len(same)}" if row in ROWS and row != "labels" else ""
        lines.append(
            f"| {network} | {target:.0%} | {row} | {middle[0]:.1%} ±{100 * spread[0]:.1f} "
            f"| {middle[1]:.3f} ±{spread[1]:.3f} | {compared} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What short training brings back after a cut.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated names of quality_networks.py")
    parser.add_argument("--json", type=Path, help="file for the raw data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, rows = time.process_time(), []
    for name in options.networks.split(","):
        for seed in range(options.seeds):
            rows += measured(name, seed)
            print(f"{name}, seed {seed}: {time.process_time() - start:.0f} s of processor time", flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

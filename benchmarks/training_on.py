"""Measures how a training goes on after a cut in its middle, and prints a Markdown table.

    python benchmarks/training_on.py                                   needs prunekit[demo]; about a minute
    python benchmarks/training_on.py --plot docs/training-on.png       also needs prunekit[plots]

The demo's conv net is trained on the handwritten digits that come with scikit-learn, with Adam. In the middle, half of
the units of every group leave, and the training goes on in three ways with the same batches:

- the optimizer's state is cut along;
- the state is cut along, but the averages of Adam are thrown away (a fresh optimizer, the usual way);
- nothing is pruned.

The loss of a step is that of the batch before the step is made, so the first one after the cut is the jump of the cut
itself: the same for both. What comes after it shows what the state is worth. The table has means over several seeds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from prunekit import BasePruner
from prunekit_plugins.cli.commands.demo import data, networks

BATCH = 64
RATE = 2e-3
WAYS = {"cut": "state cut along", "fresh": "fresh optimizer", "none": "no pruning"}


def losses(digits: data.Digits, seed: int, before: int, after: int) -> dict[str, list[float]]:
    """Trains one network and goes on in every way; returns the losses of all steps by way."""
    torch.manual_seed(seed)
    model = networks.ConvNet(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    common = train(model, optimizer, digits, range(before), seed)
    found = {}
    for way in WAYS:
        other = copy.deepcopy(model)
        own = torch.optim.Adam(other.parameters(), lr=RATE)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if way != "none":
            BasePruner(other, digits.images[:2], pruning_ratio=0.5).step(optimizer=own)
        if way == "fresh":
            own = torch.optim.Adam(other.parameters(), lr=RATE)
        found[way] = common + train(other, own, digits, range(before, before + after), seed)
    return found


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, digits: data.Digits, steps: Sequence[int], seed: int
) -> list[float]:
    found = []
    for step in steps:
        chosen = torch.randint(
            0, len(digits.labels), (BATCH,), generator=torch.Generator().manual_seed(10**6 * seed + step)
        )
        optimizer.zero_grad()
        loss = F.cross_entropy(model(digits.images[chosen]), digits.labels[chosen])
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def table(curves: Mapping[str, Sequence[float]], before: int) -> str:
    """The loss around the cut: the mean of ten steps before it, single steps after it, the mean of later ones."""
    rows = []
    for way, name in WAYS.items():
        curve = curves[way]
        rest = curve[before:]
        parts = [
            sum(curve[before - 10 : before]) / 10,
            *rest[:4],
            max(rest[1:]),
            sum(rest[20:40]) / 20,
            sum(rest[-20:]) / 20,
        ]
        rows.append(f"| {name} | {' | '.join(f'{part:.3f}' for part in parts)} |")
    head = ["loss", "before", "1st step", "2nd", "3rd", "4th", "highest after the 1st", "steps 21-40", "last 20"]
    return "\n".join([f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}", *rows])


def plot(curves: Mapping[str, Sequence[float]], before: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (whole, near) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=[3, 2])
    colours = {"cut": "#0b6e99", "fresh": "#d08a2e", "none": "#9aa5b5"}
    for axis in (whole, near):
        for way in ("none", "fresh", "cut"):
            values = curves[way]
            axis.plot(range(1, len(values) + 1), values, color=colours[way], linewidth=1.5, label=WAYS[way])
        axis.axvline(before + 0.5, color="#3c4656", linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_xlabel("training step")
        axis.spines[["top", "right"]].set_visible(False)
    near.set_xlim(before - 10, before + 40)
    visible = [value for curve in curves.values() for value in curve[before - 10 : before + 40]]
    near.set_ylim(min(visible) * 0.9, max(visible) * 1.1)
    whole.set_ylabel("training loss of the batch")
    near.set_title("around the cut", fontsize=10)
    whole.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--before", type=int, default=120)
    parser.add_argument("--after", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    digits = data.load(0)
    runs = [losses(digits, seed, options.before, options.after) for seed in range(options.seeds)]
    curves = {way: mean([run[way] for run in runs]) for way in WAYS}
    print(f"mean of {options.seeds} seeds, half of the units gone after step {options.before}\n")
    print(table(curves, options.before))
    if options.plot:
        plot(curves, options.before, options.plot)


if __name__ == "__main__":
    main()

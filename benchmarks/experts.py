"""What is left of a small mixture of experts at the same parameters, by what leaves: prints a Markdown table.

    python benchmarks/experts.py                        five seeds, six minutes
    python benchmarks/experts.py --seeds 1 --targets 0.7
    python benchmarks/experts.py --json experts.jsonl   also writes each measurement, and takes up where it stopped
    python benchmarks/experts.py --table experts.jsonl  the table of an earlier run

A decoder of two layers with eight experts each, of which a token is sent to two, learns the documentation of Python's
standard library (see ``quality_tasks.py`` and ``expert_networks.py``). Whole experts go first; other units then save as
many parameters. A cell is the median over seeds and, behind it, half of the range: bits per character of held-out text
right after the cut, without and with merging (`MergeExperts`). The other compensators are those of `prune` in all rows.
"""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import expert_networks as networks
import quality_tasks as tasks
import torch
from rows import append, parser, read, show
from torch import nn

import prunekit as pk

CRITERIA = ("rerouting", "reap", "expert_reconstruction", "expert_frequency")
ATTENTION = [f"layers.{layer}.attention" for layer in range(networks.DEPTH)]
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "expert width": {"expert_pruning_ratio": 0.0, "ignored_layers": ["tokens", *ATTENTION]},
    "`target=`": {},
}
"""Arguments of `prune`, which are asked for the parameters that the experts left; one more row is one more entry."""
MERGING = {False: ["least_squares"], True: ["merge_experts", "least_squares"]}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def asked(target: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows with the arguments of `prune` for them."""
    one = networks.EXPERT_PARAMETERS
    count, all_experts = round((1 - target) * networks.PARAMETERS / one), networks.DEPTH * networks.EXPERTS
    for criterion in CRITERIA:
        own = {"expert_pruning_ratio": count / all_experts, "global_pruning": True, "expert_importance": criterion}
        yield f"experts, `{criterion}`", {"ratio": 0.0, **own}
    left = 1 - count * one / networks.PARAMETERS
    for name, options in OTHERS.items():
        yield name, {"target": {"params": left}, **options}
    yield "stream", {"ratio": 0.0, "pruning_ratio_dict": {"tokens": 1 - left}}  # nearly all parameters have a dim of it


def measured(task: tasks.Task, seed: int, target: float, done: Container[object]) -> Iterator[dict[str, Any]]:
    """Trains a network, or takes it from the folder of trained ones, and cuts it in every way that isn't done yet."""
    model = networks.trained(task, seed)
    x, _ = task.calibration_data(seed)
    about = {"seed": seed, "full": task.metric(model), "target": target}
    for (name, options), (merging, methods) in itertools.product(asked(target), MERGING.items()):
        if (seed, target, name, merging) in done:
            continue
        small, start = copy.deepcopy(model), time.process_time()
        result = pk.prune(small, x[:1], calibration=list(x.split(32)), compensation=methods, **options)
        gone = [cut.size - len(cut.kept) for cut in result.plan.cuts if cut.group.endswith("#experts")]
        if merging and not gone:
            continue
        row = {**about, "method": name, "merging": merging, "seconds": time.process_time() - start, "gone": sum(gone)}
        yield {**row, "params": parameters(small) / parameters(model), "bits": task.metric(small)}


def _shown(values: Sequence[float]) -> str:
    """The median and half of the range."""
    if not values:
        return "-"
    median, half = tasks.median_and_half_range(values)
    return f"{median:.3f} ± {half:.3f}" if len(values) > 1 else f"{median:.3f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown of all measurements."""
    rows = sorted(rows, key=lambda row: -row["target"])
    full = list({row["seed"]: row["full"] for row in rows}.values())
    lines = [f"Bits per character, less is better, {len(full)} seeds; uncut {_shown(full)}:", ""]
    lines += ["| parameters left | what leaves | experts gone | plain | merged |", "|---:|---|---:|---:|---:|"]
    for target, method in dict.fromkeys((row["target"], row["method"]) for row in rows):
        found = [row for row in rows if (row["target"], row["method"]) == (target, method)]
        gone = sorted(row["gone"] for row in found)
        counts = f"{gone[0]} to {gone[-1]}" if gone[0] < gone[-1] else f"{gone[0]}"
        left = tasks.median_and_half_range([row["params"] for row in found])[0]
        bits = [[row["bits"] for row in found if row["merging"] == merging] for merging in MERGING]
        cells = [_shown(some if len(some) == len(full) else ()) for some in bits]  # merged only where experts left
        lines.append(f"| {left:.0%} | {method} | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    args = parser(__doc__, (0.85, 0.7, 0.55)).parse_args()
    if args.table:
        print(table(read(args.table)))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, task = read(args.json), tasks.task("docs gpt")
    done = {(row["seed"], row["target"], row["method"], row["merging"]) for row in rows}
    for seed, target in itertools.product(range(args.seeds), args.targets):
        for row in measured(task, seed, target, done):
            show(row)
            rows.append(row)
            append(args.json, [row])
    print(table(rows))


if __name__ == "__main__":
    main()

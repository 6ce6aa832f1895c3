"""What pruning costs on a GPU, in units of things that must be done anyway.

Run ``python benchmarks/gpu.py`` on a machine with a CUDA device (about two minutes); ``--device cpu --rounds 3`` for a
try. Per model: one pass of scores and one cut as multiples of a copy of all parameters, the most memory that a cut
takes beyond the model as a fraction of its two largest parameters, and a calibration pass that gathers covariances as
a multiple of the forward passes alone. All are medians measured in turns; the device is waited for.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

import prunekit as pk
from prunekit_plugins.measure import timed

NAMES = ("resnet50", "mobilenet_v2", "densenet121", "vit_b_16", "swin_t", "convnext_base", "wide_resnet101_2")
BATCHES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(NAMES), help="names of torchvision's")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of calibration data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    place = torch.cuda.get_device_name() if arguments.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{place}, torch {torch.__version__}, {arguments.rounds} rounds")
    print("| model | copy of all parameters | scores / copy | cut / copy | memory of a cut | calibration / forwards |")
    print("|---|---|---|---|---|---|")
    found = {}
    for name in arguments.models:
        row = found[name] = measured(name, arguments)
        memory = "not measured" if row["memory"] is None else f"{row['memory']:.2f}"
        print(
            f"| {name} | {row['copy'] * 1e3:.2f} ms | {row['scores']:.2f} | {row['cut']:.2f} | {memory} "
            f"| {row['calibration']:.2f} |",
            flush=True,
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2))


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one model."""
    cuda = arguments.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else None
    torch.manual_seed(0)
    model = get_model(name, weights=None).eval().to(arguments.device)
    image = torch.randn(1, 3, 224, 224, device=arguments.device)
    batches = [torch.randn(arguments.batch, 3, 224, 224, device=arguments.device) for _ in range(BATCHES)]
    pruner = pk.BasePruner(model, image, "magnitude", pruning_ratio=0.3)
    plan = pruner.plan()
    spares = [copy.deepcopy(model) for _ in range(arguments.rounds + 1)]
    taken: list[int] = []

    def cut() -> None:
        taken.append(in_room(lambda: plan.apply(spares.pop()), cuda))

    def forwards() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    runs = [
        lambda: [parameter.detach().clone() for parameter in model.parameters()],
        lambda: pruner.scores(pruner.scopes()),
        cut,
        forwards,
        lambda: pk.calibrate(model, batches, parts=("covariances",)),
    ]
    seconds = [
        statistics.median(timing.seconds) for timing in timed(runs, rounds=arguments.rounds, warm_up=1, device=device)
    ]
    largest = sorted((parameter.nbytes for parameter in model.parameters()), reverse=True)[:2]
    return {
        "copy": seconds[0],
        "scores": seconds[1] / seconds[0],
        "cut": seconds[2] / seconds[0],
        "memory": max(taken) / sum(largest) if cuda else None,
        "calibration": seconds[4] / seconds[3],
    }


def in_room(work: Callable[[], nn.Module], cuda: bool) -> int:
    """Runs something and returns the most bytes that the device's allocator held beyond those before."""
    if not cuda:
        work()
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return int(torch.cuda.max_memory_allocated()) - before


if __name__ == "__main__":
    main()

"""Measures the memory that applying a plan needs on top, for the classification models of torchvision.

    python benchmarks/memory_of_cuts.py                      all below 700 MB, 10 % of the units removed
    python benchmarks/memory_of_cuts.py --ratio 0.5 vgg11 resnet50

A cut is old or new, never between: all smaller tensors are made before the first takes its place. The peak
(`worker.extra_memory`) is given as a part of them; where little is removed, they are nearly a second copy. What is
above one is what making the largest of them takes, and the last line counts the models where that is more than the
largest parameter.
"""

from __future__ import annotations

import argparse
import warnings

import torch
import torchvision
from worker import extra_memory

import prunekit as pk

LARGEST = 700e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory that applying a plan needs on top.")
    parser.add_argument("models", nargs="*", help="names of torchvision; all classification models if none is given")
    parser.add_argument("--ratio", type=float, default=0.1, help="part of the units that is removed (0.1)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    over, count = 0, 0
    for name in options.models or torchvision.models.list_models(torchvision.models):
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        size = 4 * next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
        if size > LARGEST:
            print(f"{name:24s} left out: {size / 1e6:.0f} MB", flush=True)
            continue
        model = torchvision.models.get_model(name, **more).eval()
        side = 299 if name == "inception_v3" else 224
        plan = pk.BasePruner(model, torch.zeros(1, 3, side, side), "random", pruning_ratio=options.ratio).plan()
        largest = max(p.numel() * p.element_size() for p in model.parameters())
        peak, made = extra_memory(plan, model)
        print(f"{name:24s} {size / 1e6:6.0f} MB  made {made / 1e6:6.0f} MB  peak {peak / made:.2f}", flush=True)
        over, count = over + (peak > made + largest), count + 1
    print(f"{over} of {count} need more than what they make and the largest parameter")


if __name__ == "__main__":
    main()

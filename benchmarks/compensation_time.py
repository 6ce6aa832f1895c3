"""What compensating the MLPs of ViT-B/16 at ratio 0.5 costs beyond the forward passes.

    OMP_NUM_THREADS=2 python benchmarks/compensation_time.py --samples 512

The network has random weights and images: the cost doesn't depend on them. One run of `compensate` is profiled with
Python's own profiler. What it spends in forward passes is the time inside `Watched.run` less the time of what is called
there to look at layers; everything else is counted as beyond them. On a machine that is busy with other things, say
``--processor``: seconds of the processor are counted, those of all threads together.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import os
import pstats
import time
from collections.abc import Mapping
from typing import Any

import torch
from torchvision.models import vit_b_16

import prunekit as pk

Where = tuple[str, int, str]
"""File, line and name of a function."""


def spent(stats: Mapping[Where, Any], file: str, name: str, caller: tuple[str, str] | None = None) -> float:
    """Seconds inside a function and what it calls.

    Args:
        stats: The ``stats`` of a profile: function to calls, own time, time with callees, callers.
        file: End of the path of its file.
        name: Its name; any if empty.
        caller: File and name of the function whose calls count; None for all calls.
    """
    total = 0.0
    for (path, _, found), (_, _, _, whole, callers) in stats.items():
        if not path.endswith(file) or (name and found != name):
            continue
        if caller is None:
            total += whole
        for (origin, _, what), times in callers.items():
            if caller is not None and origin.endswith(caller[0]) and what == caller[1]:
                total += times[3]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--stages", type=int, default=12, help="12: each MLP after the repair of those before it")
    parser.add_argument("--processor", action="store_true", help="count seconds of the processor, not of the clock")
    options = parser.parse_args()
    torch.manual_seed(0)
    dense = vit_b_16(weights=None).eval()
    images = [torch.randn(options.batch, 3, 224, 224) for _ in range(max(1, options.samples // options.batch))]
    model = copy.deepcopy(dense)
    layers = {name: 0.5 for name, _ in dense.named_modules() if name.endswith("mlp.0")}
    result = pk.prune(model, images[0][:1], ratio=0.0, pruning_ratio_dict=layers)
    profile = cProfile.Profile(time.process_time if options.processor else time.perf_counter)
    with profile:
        done = pk.compensate(
            model, result.plan, images, original=dense, methods=["least_squares"], stages=options.stages
        )
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    watching, gathering = (f"prunekit_core{os.sep}{name}.py" for name in ("watching", "gathering"))
    total = spent(stats, f"prunekit_core{os.sep}compensation.py", "compensate")
    looking = spent(stats, gathering, "", (watching, "operation"))
    forward = spent(stats, watching, "run") - looking
    samples = len(images) * options.batch
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {samples} samples, {len(done.layers)} layers")
    unit = "s of the processor" if options.processor else "s"
    print(f"in all {total:.1f} {unit}: forward passes {forward:.1f} s, beyond them {total - forward:.1f} s")
    rest = total - forward - looking
    print(f"of those, gathering {looking:.1f} s ({looking / samples:.3f} s for each sample), solving {rest:.1f} s")


if __name__ == "__main__":
    main()

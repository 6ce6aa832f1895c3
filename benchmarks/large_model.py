"""Plans a 70-billion-parameter Llama on the meta device, and prints seconds and peak memory.

    python benchmarks/large_model.py                  80 layers, 8192 wide: analysis, groups and a plan
    python benchmarks/large_model.py --layers 8 --rounds 1

Scores are random and need no weights, so that what is measured is the structure: recording, groups, choosing units,
rehearsal, and the plan with its rescales. Building the model isn't counted. Every round is a process of its own with
one thread; seconds are counted by the wall clock and by the processor. Peak memory is that of the whole process,
PyTorch and the model's modules included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from llama import SEVENTY_BILLION, Llama
from memory import peak_memory

import prunekit as pk


def work(layers: int) -> None:
    """One measurement, printed as JSON."""
    torch.set_num_threads(1)
    sizes = SEVENTY_BILLION.with_layers(layers)
    with torch.device("meta"):
        model = Llama(sizes)
        ids = torch.zeros(1, 16, dtype=torch.long)
    pk.default_registry()
    peak_before = peak_memory()
    wall, processor = time.perf_counter(), time.process_time()
    plan = pk.BasePruner(model, ids, "random").plan()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    preview = plan.preview()
    found = {
        "wall": wall,
        "processor": processor,
        "peak": peak_memory(),
        "peak_before": peak_before,
        "before": preview.params_before,
        "after": preview.params_after,
        "groups": len(plan.cuts),
        "plan": len(plan.to_json()),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SEVENTY_BILLION.layers)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.layers)
        return
    command = [sys.executable, __file__, "--work", "--layers", str(arguments.layers)]
    found = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(arguments.rounds)
    ]
    first = found[0]
    print(f"torch {torch.__version__}, 1 thread, {arguments.rounds} rounds")
    print(f"{first['before'] / 1e9:.1f} -> {first['after'] / 1e9:.1f} billion parameters, {first['groups']} groups cut")
    print(f"seconds (median): {statistics.median(f['wall'] for f in found):.2f} by the wall clock,", end=" ")
    print(f"{statistics.median(f['processor'] for f in found):.2f} by the processor")
    peak, planning = max(f["peak"] for f in found), max(f["peak"] - f["peak_before"] for f in found)
    print(f"peak memory: {peak / 1e9:.2f} GB, of which planning took {planning / 1e9:.2f} GB")
    print(f"the plan as JSON: {first['plan'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

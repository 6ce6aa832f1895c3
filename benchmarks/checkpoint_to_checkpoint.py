"""Prunes a checkpoint on disk, and compares memory and speed with copying the file.

    python benchmarks/checkpoint_to_checkpoint.py                    2 GB in the folder for temporary files, 5 rounds
    python benchmarks/checkpoint_to_checkpoint.py --gigabytes 0.2 --rounds 1 --folder /tmp

The file has the tensors of a Llama-shaped decoder in bfloat16. Half of all units go (widths, dims of heads, hidden
sizes), by a plan that is made on the meta device. Copying and pruning take turns, each in a process of its own; seconds
are counted inside it, after imports, by the wall clock and by the processor. Peak memory is that of the whole process,
PyTorch included. Everything that was written is deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from llama import Llama, Sizes
from memory import peak_memory

import prunekit as pk
from prunekit_plugins.checkpoints.tensorfile import Stored, write_tensors


def model_of(gigabytes: float) -> Llama:
    """A decoder on the meta device whose weights in bfloat16 come near a size."""
    with torch.device("meta"):
        layers = 1
        while True:
            model = Llama(Sizes(vocabulary=32_000, width=2048, layers=layers, heads=16, kv_heads=4, hidden=5632))
            if sum(p.numel() * 2 for p in model.parameters()) >= gigabytes * 1e9:
                return model
            layers += 1


def prepare(folder: Path, gigabytes: float) -> None:
    """Writes the checkpoint and the plan."""
    model = model_of(gigabytes)
    stored = {name: Stored(torch.bfloat16, tuple(value.shape)) for name, value in model.state_dict().items()}

    def rows(name: str) -> Iterator[torch.Tensor]:
        for start, stop in stored[name].pieces():
            yield torch.randn(stop - start, *stored[name].shape[1:]).bfloat16()

    write_tensors(folder / "dense.safetensors", stored, {"format": "pt"}, rows)
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    pk.BasePruner(model, ids, "random", pruning_ratio=0.5).plan().save(folder / "plan.json")


def work(what: str, folder: Path) -> None:
    """One measurement: prints seconds by both clocks and peak memory as JSON."""
    torch.set_num_threads(1)
    source, target = folder / "dense.safetensors", folder / f"{what}.safetensors"
    plan = pk.Plan.load(folder / "plan.json")
    wall, processor = time.perf_counter(), time.process_time()
    if what == "copy":
        shutil.copyfile(source, target)
    else:
        pk.prune_checkpoint(source, target, plan)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(json.dumps({"wall": wall, "processor": processor, "peak": peak_memory()}))


def measure(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", what, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--work", choices=("copy", "prune"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="prunekit-") as name:
        folder = Path(name)
        prepare(folder, arguments.gigabytes)
        found: dict[str, list[dict[str, float]]] = {"copy": [], "prune": []}
        for _ in range(arguments.rounds):
            for what, results in found.items():
                results.append(measure(what, folder))
        sizes = {n: (folder / f"{n}.safetensors").stat().st_size for n in ("dense", "prune")}
    seconds, busy = (
        {what: statistics.median(r[clock] for r in results) for what, results in found.items()}
        for clock in ("wall", "processor")
    )
    peak = {what: max(r["peak"] for r in results) for what, results in found.items()}
    print(f"source {sizes['dense'] / 1e9:.2f} GB, pruned {sizes['prune'] / 1e9:.2f} GB, {arguments.rounds} rounds")
    print(f"torch {torch.__version__}, 1 thread")
    print("| | seconds (median) | of the processor | GB of the source per second | peak memory of the process |")
    print("|---|---|---|---|---|")
    for what, words in (("copy", "copying the file"), ("prune", "pruning it on disk")):
        rate = sizes["dense"] / 1e9 / seconds[what]
        print(f"| {words} | {seconds[what]:.2f} | {busy[what]:.2f} | {rate:.2f} | {peak[what] / 1e9:.2f} GB |")
    print(f"speed of pruning, as a fraction of that of copying: {seconds['copy'] / seconds['prune']:.2f}", end=" ")
    print(f"by the wall clock, {busy['copy'] / busy['prune']:.2f} by the processor")


if __name__ == "__main__":
    main()

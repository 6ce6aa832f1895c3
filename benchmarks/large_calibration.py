"""Calibrates and compensates a Llama-shaped model whose weights stay on disk, and prints peak memory.

    python benchmarks/large_calibration.py                 40 layers, 768 wide: a checkpoint of 1 GB
    python benchmarks/large_calibration.py --layers 6      a smaller one

Every measurement is a process of its own with one thread:

- memory: the model is loaded, calibrated as always (means and variances), and the statistics are kept;
- disk: the model is on the meta device, its files are read tensor by tensor, and the statistics are compared;
- whole: the same, then a plan by them, compensation, and the pruned checkpoint.

Peak memory is that of the whole process; what it was before the work, PyTorch and the modules, is taken off. Pages that
the system keeps of files that were read aren't the process's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from llama import Llama, Rotary, Sizes
from memory import peak_memory

import prunekit as pk

SHARD = "200MB"


def sizes_of(layers: int) -> Sizes:
    return Sizes(vocabulary=8_000, width=768, layers=layers, heads=12, kv_heads=4, hidden=2_048)


def batches(sizes: Sizes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(sizes.vocabulary, (4, 64), generator=generator) for _ in range(2)]


def write(place: Path, sizes: Sizes) -> None:
    """Somebody's trained model: random weights, in shards."""
    torch.manual_seed(0)
    pk.save(Llama(sizes).eval(), place / "dense", max_shard_size=SHARD)


def empty(sizes: Sizes) -> Llama:
    """The model without weights; the buffer that no checkpoint holds is real."""
    with torch.device("meta"):
        model = Llama(sizes).eval()
    model.rotary = Rotary(sizes.width // sizes.heads)
    return model


def memory(place: Path, sizes: Sizes) -> None:
    model = pk.load(empty(sizes), place / "dense", assign=True)
    pk.calibrate(model, batches(sizes)).save(place / "memory.safetensors")


def disk(place: Path, sizes: Sizes) -> None:
    pk.calibrate(empty(sizes), batches(sizes), weights=place / "dense").save(place / "disk.safetensors")


def whole(place: Path, sizes: Sizes) -> None:
    data = batches(sizes)
    example = data[0][:1].to("meta")
    result = pk.prune(empty(sizes), example, ratio=0.5, weights=place / "dense", calibration=data)
    pk.prune_checkpoint(place / "dense", place / "small", result.plan, repaired=result.repaired)


STEPS: dict[str, Callable[[Path, Sizes], None]] = {"write": write, "memory": memory, "disk": disk, "whole": whole}


def work(step: str, place: Path, layers: int) -> None:
    """One measurement, printed as JSON."""
    torch.set_num_threads(1)
    sizes = sizes_of(layers)
    empty(sizes)
    pk.default_registry()
    before, start = peak_memory(), time.perf_counter()
    STEPS[step](place, sizes)
    print(json.dumps({"peak": peak_memory() - before, "before": before, "seconds": time.perf_counter() - start}))


def difference(place: Path) -> float:
    """The largest difference between statistics, relative to the largest value of a layer's."""
    first, second = (pk.Statistics.load(place / f"{name}.safetensors") for name in ("memory", "disk"))
    assert list(first.sites) == list(second.sites)
    worst = 0.0
    for name, seen in first.sites.items():
        for part in ("mean", "variance"):
            a, b = getattr(seen.moments, part), getattr(second.sites[name].moments, part)
            worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where the files go for a while; the system's place by default")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--work", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.folder, arguments.layers)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = {}
        for step in STEPS:
            command = [sys.executable, __file__, "--work", step, "--layers", str(arguments.layers), "--folder", folder]
            found[step] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        bytes_of = {
            name: sum(file.stat().st_size for file in (Path(folder) / name).glob("*.safetensors"))
            for name in ("dense", "small")
        }
        apart = difference(Path(folder))
    if arguments.json:
        print(json.dumps({**found, "bytes": bytes_of, "difference": apart}))
        return
    print(f"torch {torch.__version__}, 1 thread; a checkpoint of {bytes_of['dense'] / 1e9:.2f} GB")
    for step in ("memory", "disk", "whole"):
        peak, seconds = found[step]["peak"], found[step]["seconds"]
        print(f"{step:<7} {peak / 1e9:6.3f} GB, {peak / bytes_of['dense']:6.1%} of it, {seconds:6.1f} s")
    print(f"statistics differ by {apart:.1e}; the pruned checkpoint has {bytes_of['small'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

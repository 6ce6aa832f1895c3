"""Does half of the MACs take half of the time? ResNet-50 on this CPU, with sizes that suit it and as they come.

Run ``python benchmarks/latency.py`` on a quiet machine (about two minutes); ``--rounds 3 --batches 1`` for a try, and
``--device cuda --dtype bfloat16 --batches 1 64 256`` for a GPU. The original, the unaligned and the aligned model run
in turns, so that noise hits all three.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

import prunekit as pk
from prunekit_plugins.measure import count_macs, side_by_side, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="a name of torchvision's")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--target", type=float, default=0.5, help="fraction of the MACs that is left")
    parser.add_argument("--latency", type=float, help="also prune until this fraction of the time is left")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    arguments = parser.parse_args()
    found = []
    with threads(arguments.threads) as used:
        where = f"{used} threads, {torch.backends.cpu.get_cpu_capability()}"
        if arguments.device == "cuda":
            where = torch.cuda.get_device_name()
        print(
            f"{arguments.model}, {arguments.size} x {arguments.size}, {arguments.dtype}, {where}, "
            f"torch {torch.__version__}"
        )
        print(
            f"{'batch':>5}  {'model':<18}  {'MACs left':>9}  {'median':>10}  {'half of the runs':>21}  {'speed-up':>8}"
        )
        for batch in arguments.batches:
            found += measured(arguments, batch)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2))


def measured(arguments: argparse.Namespace, batch: int) -> list[dict[str, object]]:
    """Prunes, measures one batch size, and prints a line per model."""
    dtype = getattr(torch, arguments.dtype)
    image = torch.randn(1, 3, arguments.size, arguments.size).to(arguments.device, dtype)
    models: dict[str, nn.Module] = {"original": build(arguments.model).to(image)}
    for name, align in (("as they come", None), ('align="auto"', "auto")):
        models[name] = build(arguments.model).to(image)
        pk.prune(models[name], image, target={"macs": arguments.target}, align=align)
    inputs = image.expand(batch, -1, -1, -1).contiguous()
    if arguments.latency is not None:
        name = f"latency {arguments.latency:g}"
        models[name] = build(arguments.model).to(image)
        pk.prune(models[name], inputs, target={"latency": arguments.latency}, align="auto")
    timings = side_by_side(list(models.values()), inputs, rounds=arguments.rounds)
    dense = count_macs(models["original"], image)
    rows = []
    for (name, model), timing in zip(models.items(), timings, strict=True):
        low, high = timing.quartiles
        left, faster = count_macs(model, image) / dense, timings[0].median / timing.median
        spread = f"{low * 1e3:.1f} - {high * 1e3:.1f} ms"
        print(
            f"{batch:>5}  {name:<18}  {left:>9.1%}  {timing.median * 1e3:>7.1f} ms  {spread:>21}  {faster:>7.2f}x",
            flush=True,
        )
        rows.append(
            {"batch": batch, "model": name, "macs_left": left, "seconds": list(timing.seconds), "speed_up": faster}
        )
    return rows


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return get_model(name, weights=None).eval()


if __name__ == "__main__":
    main()

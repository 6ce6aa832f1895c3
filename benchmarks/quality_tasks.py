"""Data, training and metrics of the quality benchmark: everything is bundled with Python or scikit-learn, or generated.

Trained networks are kept in a folder of the temporary directory, so that a second run only prunes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import math
import pkgutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import quality_networks as networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHE = Path(tempfile.gettempdir()) / "prunekit-quality"
Batch = tuple[Tensor, Tensor]
Sampler = Callable[[int, torch.Generator], Batch]


@attrs.frozen(eq=False)
class Task:
    """A network with its data.

    Attributes:
        name: Its name, also that of the network.
        sample: Number of samples and a generator to a batch of the training data.
        held_out: Inputs and labels that are never trained or calibrated on.
        batch, steps, rate: Course of the training: samples per step, steps, highest learning rate.
        calibration: How many training samples the pruning methods see.
        bits: Whether the metric is bits per character (less is better) instead of accuracy.
    """

    name: str
    sample: Sampler
    held_out: Batch
    batch: int
    steps: int
    rate: float
    calibration: int
    bits: bool = False

    def metric(self, model: nn.Module) -> float:
        """Accuracy, or bits per character, on the held-out data."""
        model.eval()
        total = 0.0
        with torch.inference_mode():
            for x, y in zip(self.held_out[0].split(256), self.held_out[1].split(256), strict=True):
                logits = model(x)
                if self.bits:
                    total += float(networks.loss(logits, y).double().sum()) / math.log(2)
                else:
                    total += float((logits.argmax(1) == y).sum())
        return total / len(self.held_out[0])

    def train(self, model: nn.Module, seed: int, part: float = 1.0, speed: float = 1.0) -> None:
        """Trains a model in place with AdamW and one cycle of the learning rate.

        Args:
            model: The model.
            seed: For the order of the data.
            part: Which part of the steps of the full course.
            speed: Which part of its learning rate.
        """
        steps, rate = max(1, round(self.steps * part)), self.rate * speed
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        model.train()
        for _ in range(steps):
            x, y = self.sample(self.batch, generator)
            optimizer.zero_grad()
            networks.loss(model(x), y).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()

    def trained(self, seed: int) -> nn.Module:
        """Trains the network, or takes it from the folder of trained ones."""
        model = networks.build(self.name, seed)
        file = CACHE / f"{self.name.replace(' ', '-')}-{seed}-{self._digest(model)}.pt"
        if file.exists():
            model.load_state_dict(torch.load(file, weights_only=True))
        else:
            self.train(model, seed)
            CACHE.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
        return model.eval()

    def _digest(self, model: nn.Module) -> str:
        """A fingerprint of everything that a trained network depends on."""
        x, y = self.sample(8, torch.Generator().manual_seed(0))
        course = (self.batch, self.steps, self.rate, torch.__version__, str(model), x.tolist(), y.tolist())
        code = inspect.getsource(Task.train) + inspect.getsource(networks.loss)
        return hashlib.sha256(f"{course}{code}".encode()).hexdigest()[:12]

    def calibration_data(self, seed: int) -> Batch:
        """Samples of the training data for the pruning methods."""
        return self.sample(self.calibration, torch.Generator().manual_seed(1000 + seed))


# -- data


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn: float tensor ``[n, 1, 8, 8]`` from 0 to 1, int64 tensor ``[n]``, shuffled."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    return images[order], torch.tensor(bunch.target, dtype=torch.int64)[order]


TEST_DIGITS = 599


def _scaled(images: Tensor) -> Tensor:
    return 2.6 * images - 0.8


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every image by up to a pixel in each direction."""
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1))
    down, right = (torch.randint(0, 3, (count, 1), generator=generator) for _ in range(2))
    rows, columns = down + torch.arange(8), right + torch.arange(8)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def _digit_task(name: str, steps: int, rate: float, shifts: bool) -> Task:
    images, labels = _digits()

    def sample(count: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(TEST_DIGITS, len(images), (count,), generator=generator)
        found = images[chosen]
        return _scaled(_shifted(found, generator) if shifts else found), labels[chosen]

    held_out = (_scaled(images[:TEST_DIGITS]), labels[:TEST_DIGITS])
    return Task(name, sample, held_out, batch=64, steps=steps, rate=rate, calibration=256)


def _cluttered(images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Puts digits anywhere on a canvas of 16 by 16, with four scraps of other digits and noise.

    The protocol of cluttered MNIST (Mnih et al., Recurrent Models of Visual Attention, 2014), at the size of these
    digits.
    """
    count = len(images)
    canvas = torch.zeros(count, 1, 16, 16)
    for scrap in range(5):
        side = 8 if scrap == 4 else 3
        at = torch.randint(0, 17 - side, (2, count), generator=generator)
        cut = torch.randint(0, 9 - side, (2, count), generator=generator)
        grid = torch.arange(side)
        rows, columns = (cut[d][:, None] + grid for d in range(2))
        source = images if scrap == 4 else others[torch.randint(0, len(others), (count,), generator=generator)]
        patch = source[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        rows, columns = (at[d][:, None] + grid for d in range(2))
        place = (torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :])
        canvas[place] = torch.maximum(canvas[place], patch)
    return _scaled(canvas + 0.1 * torch.randn(canvas.shape, generator=generator))


def _clutter_task(name: str) -> Task:
    images, labels = _digits()
    train, test = images[TEST_DIGITS:], images[:TEST_DIGITS]

    def sample(count: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(0, len(train), (count,), generator=generator)
        return _cluttered(train[chosen], train, generator), labels[TEST_DIGITS:][chosen]

    generator = torch.Generator().manual_seed(1)
    held_out = (_cluttered(test.repeat(3, 1, 1, 1), test, generator), labels[:TEST_DIGITS].repeat(3))
    return Task(name, sample, held_out, batch=64, steps=700, rate=1e-2, calibration=256)


def _table_task(name: str) -> Task:
    """A table like that of forest covertypes (54 columns, 7 classes), made by scikit-learn."""
    from sklearn.datasets import make_classification

    columns, classes = make_classification(
        12000,
        networks.FEATURES,
        n_informative=20,
        n_redundant=10,
        n_classes=networks.CLASSES,
        n_clusters_per_class=3,
        class_sep=1.5,
        flip_y=0.0,
        random_state=0,
    )
    rows, labels = torch.tensor(columns, dtype=torch.float32), torch.tensor(classes, dtype=torch.int64)
    rows = (rows - rows[2000:].mean(0)) / rows[2000:].std(0)

    def sample(count: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(2000, len(rows), (count,), generator=generator)
        return rows[chosen], labels[chosen]

    return Task(name, sample, (rows[:2000], labels[:2000]), batch=128, steps=1500, rate=3e-3, calibration=512)


@functools.cache
def _documentation() -> Tensor:
    """What the modules of the standard library say about themselves: int64 tensor ``[characters]``, symbol numbers.

    Modules come in the order of a hash of their names, so that held-out text isn't one letter of the alphabet.
    """
    names = [info.name for info in pkgutil.iter_modules() if info.name in sys.stdlib_module_names]
    names = [name for name in names if not name.startswith("_") and name not in ("antigravity", "this", "idlelib")]
    texts = []
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except ImportError:  # modules of other systems
            continue
        texts.append(_docstrings(module))
    code = [ord(letter) for letter in "\n\n".join(texts)]
    numbers = torch.tensor(
        [0 if letter == 10 else letter - 31 for letter in code if letter == 10 or 32 <= letter < 127]
    )
    assert int(numbers.max()) < networks.SYMBOLS
    return numbers


def _docstrings(module: object) -> str:
    name = getattr(module, "__name__", "")
    found = [inspect.getdoc(module) or ""]
    for _, value in sorted(vars(module).items()):
        if getattr(value, "__module__", None) != name:
            continue
        found.append(inspect.getdoc(value) or "")
        if isinstance(value, type):
            members = [member for _, member in sorted(vars(value).items()) if inspect.isroutine(member)]
            found += [(member.__doc__ and inspect.cleandoc(member.__doc__)) or "" for member in members]
    return "\n\n".join(dict.fromkeys(text for text in found if text))


def _docs_task(name: str) -> Task:
    text = _documentation()
    border, window = len(text) // 10, networks.CONTEXT + 1

    def windows(starts: Tensor) -> Batch:
        found = text[starts[:, None] + torch.arange(window)]
        return found[:, :-1], found[:, 1:]

    def sample(count: int, generator: torch.Generator) -> Batch:
        return windows(torch.randint(border, len(text) - window, (count,), generator=generator))

    starts = torch.randint(0, border - window, (512,), generator=torch.Generator().manual_seed(1))
    return Task(name, sample, windows(starts), batch=32, steps=900, rate=6e-3, calibration=128, bits=True)


MAKERS: dict[str, Callable[[str], Task]] = {
    "digits conv net": lambda name: _digit_task(name, 200, 1e-2, shifts=True),
    "digits transformer": lambda name: _digit_task(name, 500, 3e-3, shifts=False),
    "clutter resnet": _clutter_task,
    "table perceptron": _table_task,
    "docs gpt": _docs_task,
}


def task(name: str) -> Task:
    """Makes one of the tasks."""
    networks.build(name, 0)
    return MAKERS[name](name)


def median_and_half_range(values: Sequence[float]) -> tuple[float, float]:
    """What tables show of several seeds: the median, and half of the distance between the best and the worst."""
    return statistics.median(values), (max(values) - min(values)) / 2

"""Training, distillation after the cut, and accuracy, as plain as they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import Batches, distill
from prunekit_plugins.cli.commands.demo.data import BLANK, Digits

BATCH = 64
Progress = Callable[[int, int], None]


@attrs.frozen
class Course:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training images.
        rate: The highest learning rate of the cycle.
        shifts: Whether the images are moved about by up to a pixel.
    """

    epochs: int
    rate: float
    shifts: bool


@attrs.frozen(eq=False)
class Epochs:
    """The training images in batches, in another order and shifted otherwise in every pass.

    Attributes:
        digits: The data; the held-out part isn't looked at.
        shifts: Whether the images are moved about.
    """

    digits: Digits
    shifts: bool

    def __len__(self) -> int:
        return -(-len(self.digits.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels; PyTorch's default generator says in which order."""
        digits = self.digits
        images = shifted(digits.images) if self.shifts else digits.images
        for batch in torch.randperm(len(images)).split(BATCH):
            yield images[batch], digits.labels[batch]


def train(model: nn.Module, digits: Digits, course: Course, *, seed: int, after_epoch: Callable[[], None]) -> None:
    """Trains a model in place, with AdamW and one cycle of the learning rate.

    Args:
        model: The model.
        digits: The data; the held-out part isn't looked at.
        course: How long and how fast.
        seed: For the order of the images and their shifts.
        after_epoch: Called after every epoch.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, weight_decay=0.01)
    batches = Epochs(digits, course.shifts)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, course.rate, total_steps=course.epochs * len(batches))
    model.train()
    for _ in range(course.epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        after_epoch()
    model.eval()


def heal(
    model: nn.Module, teacher: nn.Module, digits: Digits, course: Course, *, seed: int, progress: Progress | None = None
) -> None:
    """Trains a pruned model in place towards the outputs of the model before the cut, without labels.

    Args:
        model: The pruned model.
        teacher: The model before the cut.
        digits: The data; the held-out part isn't looked at.
        course: How long and how fast.
        seed: For the order of the images and their shifts.
        progress: Called after each step with the steps done and their total.
    """
    batches = Batches(Epochs(digits, course.shifts), inputs=lambda batch: batch[0])
    distill(model, teacher, batches, epochs=course.epochs, lr=course.rate, warm_up=0.3, seed=seed, progress=progress)


def shifted(images: Tensor) -> Tensor:
    """Moves every image by up to a pixel in each direction; blank pixels come in.

    Args:
        images: Tensor ``[n, 1, 8, 8]``.
    """
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1), value=BLANK)
    down, right = (torch.randint(0, 3, (count, 1)) for _ in range(2))
    rows, columns = down + torch.arange(8), right + torch.arange(8)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Returns the fraction of the held-out images that a model names rightly."""
    model.eval()
    with torch.inference_mode():
        guesses = model(digits.held_out_images).argmax(1)
    return float((guesses == digits.held_out_labels).float().mean())

"""Training, fine-tuning and accuracy, as plain as they can be."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit_plugins.cli.commands.demo.data import BLANK, Digits

BATCH = 64
TEMPERATURE = 2.0


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


def train(
    model: nn.Module,
    digits: Digits,
    course: Course,
    *,
    seed: int,
    after_epoch: Callable[[], None],
    teacher: nn.Module | None = None,
) -> None:
    """Trains a model in place, with AdamW and one cycle of the learning rate.

    Args:
        model: The model.
        digits: The data; the held-out part isn't looked at.
        course: How long and how fast.
        seed: For the order of the images and their shifts.
        after_epoch: Called after every epoch.
        teacher: A model whose outputs are to be matched instead of the labels.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, weight_decay=0.01)
    steps = course.epochs * -(-len(digits.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, course.rate, total_steps=steps)
    model.train()
    for _ in range(course.epochs):
        images = shifted(digits.images, generator) if course.shifts else digits.images
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = _loss(model, images[batch], digits.labels[batch], teacher)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        after_epoch()
    model.eval()


def _loss(model: nn.Module, images: Tensor, labels: Tensor, teacher: nn.Module | None) -> Tensor:
    logits = model(images)
    if teacher is None:
        return F.cross_entropy(logits, labels)
    with torch.no_grad():
        wanted = teacher(images)
    # softened as in Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015
    own, wanted = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(wanted / TEMPERATURE, 1)
    return F.kl_div(own, wanted, reduction="batchmean") * TEMPERATURE**2


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every image by up to a pixel in each direction; blank pixels come in.

    Args:
        images: Tensor ``[n, 1, 8, 8]``.
        generator: Where the shifts come from.
    """
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1), value=BLANK)
    down, right = (torch.randint(0, 3, (count, 1), generator=generator) for _ in range(2))
    rows, columns = down + torch.arange(8), right + torch.arange(8)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Returns the fraction of the held-out images that a model names rightly."""
    model.eval()
    with torch.inference_mode():
        guesses = model(digits.held_out_images).argmax(1)
    return float((guesses == digits.held_out_labels).float().mean())

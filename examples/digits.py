"""What the examples share: scikit-learn's handwritten digits, a training loop, an accuracy."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

HELD_OUT = 600


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images ``[n, 1, 8, 8]`` and labels ``[n]`` to train on, and the same for the held-out ones."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """Trains a model in place, with AdamW and one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    batches = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the fraction of images that the model classifies correctly."""
    return (model(images).argmax(1) == labels).float().mean().item()

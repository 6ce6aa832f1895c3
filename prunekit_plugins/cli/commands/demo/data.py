"""The handwritten digits that come with scikit-learn: 1,797 real scans of 8 by 8 pixels, no download."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from prunekit.plugin import PrunekitError

BLANK = -0.8
"""Value of an empty pixel: the images are moved and scaled to about zero mean and unit variance."""

HELD_OUT = 599
"""A third: never trained on; every accuracy that the demo prints is on these."""


class MissingPackageError(PrunekitError, ImportError):
    """The demo's data is in a package that isn't installed."""


@attrs.frozen(eq=False)
class Digits:
    """Training and held-out images.

    Attributes:
        images: Float tensor ``[n, 1, 8, 8]``; `BLANK` is an empty pixel, 1.8 a full one.
        labels: Int64 tensor ``[n]``, 0 to 9.
        held_out_images: The same for the images that are never trained on.
        held_out_labels: Their labels.
    """

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load(seed: int) -> Digits:
    """Loads the digits and splits them at random.

    Raises:
        MissingPackageError: scikit-learn isn't installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError(
            "The demo's data comes with scikit-learn, which can't be imported.",
            why=str(error),
            hint='pip install "prunekit[demo]"',
        ) from error
    bunch = load_digits()
    images = BLANK + 2.6 * torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    return Digits(images[train], labels[train], images[test], labels[test])

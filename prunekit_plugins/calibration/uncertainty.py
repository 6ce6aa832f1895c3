"""How far a covariance may be off, where samples come in examples: positions of an image, tokens of a text.

Samples of one example resemble each other, so that only whole examples can be counted as independent. With ``T_k`` the
sum of ``x x^T`` over the samples of example ``k``, ``m_k`` the number of these, and ``S = sum T_k / sum m_k``, the
expected squared error of ``S`` is ``sum ||T_k - m_k S||^2 / (sum m_k)^2``, times ``n / (n - 1)`` for ``n`` examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch

PIECE = 1 << 22
"""Elements of products of single examples that are made at a time."""


@attrs.frozen
class Uncertainty:
    """Expected squared error of a covariance, summed over its elements and groups.

    Attributes:
        whole: Of all elements.
        diagonal: Of those on the diagonal.
        examples: Number of examples that it was estimated from.
    """

    whole: float
    diagonal: float
    examples: int

    def shrinkage(self, covariance: torch.Tensor) -> float:
        """Returns by which part of the elements beside the diagonal should be taken off, from 0 to 1.

        It is the ``rho`` with which ``(1 - rho) S + rho diag(S)`` has the least expected squared error: that of the
        elements beside the diagonal, divided by their squares (Ledoit and Wolf, *A well-conditioned estimator for
        large-dimensional covariance matrices*, 2004; Schaefer and Strimmer, 2005, for this target). 1 with a single
        example, which says nothing about its error.

        Args:
            covariance: Tensor ``[groups, features, features]``.
        """
        beside = float(covariance.square().sum()) - float(covariance.diagonal(dim1=-2, dim2=-1).square().sum())
        if beside <= 0:
            return 0.0
        return 1.0 if self.examples < 2 else min(1.0, max(0.0, self.whole - self.diagonal) / beside)

    def independent(self, covariance: torch.Tensor) -> float:
        """Returns how many independent normal samples would give a covariance that is known as well.

        For those the expected squared error is ``(tr(S^2) + tr(S)^2) / n``.

        Args:
            covariance: Tensor ``[groups, features, features]``.
        """
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        scale = float(covariance.square().sum()) + float(trace.square().sum())
        return scale / self.whole if self.whole > 0 and self.examples > 1 else float(self.examples)

    def beside(self, other: Uncertainty, shares: tuple[float, float], *, apart: bool) -> Uncertainty:
        """Returns the uncertainty of the mean of two covariances.

        Args:
            other: That of the other one.
            shares: How much each counts, adding up to 1.
            apart: Whether they are of different examples; their errors go together otherwise.
        """

        def joined(a: float, b: float) -> float:
            one, two = shares[0] * math.sqrt(a), shares[1] * math.sqrt(b)
            return one * one + two * two if apart else (one + two) * (one + two)

        examples = self.examples + other.examples if apart else max(self.examples, other.examples)
        return Uncertainty(joined(self.whole, other.whole), joined(self.diagonal, other.diagonal), examples)


class Sampling:
    """Adds up what the uncertainty of a covariance follows from.

    Attributes:
        examples: Number of examples.
    """

    def __init__(self) -> None:
        self.examples = 0
        self._whole = self._diagonal = self._sizes = 0.0

    def add(self, x: torch.Tensor, examples: torch.Tensor | None) -> None:
        """Adds samples.

        Args:
            x: Tensor ``[groups, samples, features]``.
            examples: Tensor ``[samples]``, int64, not descending: which example each sample is a part of. An example
                counts once for each call that has samples of it. None: each sample is an example.
        """
        sizes = [1] * x.shape[1] if examples is None else torch.unique_consecutive(examples, return_counts=True)[1]
        sizes = torch.as_tensor(sizes, device="cpu")
        whole = diagonal = 0.0
        for parts in _alike(x.float(), sizes.tolist()):
            diagonal += float(parts.square().sum(2).double().square().sum())
            turned = parts.transpose(2, 3)
            product = turned @ parts if parts.shape[2] > parts.shape[3] else parts @ turned
            whole += float(product.square().sum(dtype=torch.float64))
        self.examples += len(sizes)
        self._sizes += float(sizes.double().square().sum())
        self._whole += whole
        self._diagonal += diagonal

    def uncertainty(self, second: torch.Tensor, samples: int) -> Uncertainty:
        """Returns the uncertainty.

        Args:
            second: Tensor ``[groups, features, features]``: the mean of ``x x^T`` over all samples.
            samples: Their number.
        """
        diagonal = float(second.diagonal(dim1=-2, dim2=-1).square().sum())
        factor = self.examples / max(1, self.examples - 1) / samples**2
        whole = max(0.0, self._whole - self._sizes * float(second.square().sum())) * factor
        return Uncertainty(whole, max(0.0, self._diagonal - self._sizes * diagonal) * factor, self.examples)


def _alike(x: torch.Tensor, sizes: list[int]) -> Iterator[torch.Tensor]:
    """Yields the samples of examples of one size together, ``[groups, examples, size, features]``, some at a time."""
    groups, _, features = x.shape
    if len(set(sizes)) > 1:
        for part in x.split(sizes, 1):
            yield part[:, None]
        return
    size = sizes[0]
    step = max(1, PIECE // max(1, groups * min(size, features) ** 2))
    whole = x.reshape(groups, len(sizes), size, features)
    yield from whole.split(step, 1)

"""Losses of distillation, as functions of tensors.

Logits have the classes along their last dim; everything before it is positions. Halves are computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORED = -100
"""The label of a position that doesn't count, as in PyTorch's cross-entropy."""


def divergences(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Computes ``T^2 KL(softmax(t / T) || softmax(s / T))`` at every position (Hinton et al. 2015).

    The factor makes the gradients about as large at every temperature.

    Args:
        student: Logits ``s``, float tensor ``[..., classes]``.
        teacher: Logits ``t``, float tensor ``[..., classes]``.
        temperature: ``T``, positive.

    Returns:
        Tensor ``[...]``, at least float32.
    """
    own, wanted = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    return temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)


def top_divergences(
    student: torch.Tensor, values: torch.Tensor, classes: torch.Tensor, rest: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Computes the same from the teacher's largest logits, all other classes taken for one.

    With ``k`` of the classes this is the divergence of distributions of ``k + 1`` outcomes. It is never above that of
    all classes (merging outcomes loses information), and the same where ``k`` is their number.

    Args:
        student: Logits, float tensor ``[..., classes]``.
        values: The teacher's largest logits, float tensor ``[..., k]``.
        classes: Which classes these are, int64 tensor ``[..., k]``.
        rest: ``log(sum(exp(t / T)))`` over all other classes, float tensor ``[...]``; ``-inf`` where there are none.
        temperature: ``T``, the one that ``rest`` was computed at.

    Returns:
        Tensor ``[...]``, at least float32.
    """
    own = _wide(student) / temperature
    scores = torch.cat([_wide(values) / temperature, _wide(rest)[..., None]], dim=-1)
    wanted = scores.log_softmax(-1)
    total = own.logsumexp(-1, keepdim=True)
    named = own.gather(-1, classes)
    known = named - total
    probability = wanted[..., :-1].exp()
    found = (probability * (wanted[..., :-1] - known)).sum(-1)
    if classes.shape[-1] < student.shape[-1]:
        others = own.scatter(-1, classes, -torch.inf).logsumexp(-1) - total[..., 0]
        found = found + wanted[..., -1].exp() * (wanted[..., -1] - others)
    return temperature**2 * found


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes ``-log softmax(logits)[label]`` at every position; 0 where the label is `IGNORED`.

    Args:
        logits: Float tensor ``[..., classes]``.
        labels: Int64 tensor ``[...]``.

    Returns:
        Tensor ``[...]``, at least float32.
    """
    flat = F.cross_entropy(
        _wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return flat.reshape(labels.shape)


def relative_error(student: torch.Tensor, teacher: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Computes ``mean((s - t)^2) / mean(t^2)``: the mean squared error of hidden states, relative to their size.

    Args:
        student: ``s``, float tensor of any shape.
        teacher: ``t``, of the same shape.
        counted: Bool tensor of the shape without the last dim: which positions count; None for all.

    Returns:
        Scalar, at least float32.
    """
    own, wanted = _wide(student), _wide(teacher)
    wrong, size = (own - wanted).square(), wanted.square()
    if counted is not None:
        wrong, size = wrong[counted], size[counted]
    return wrong.mean() / size.mean().clamp_min(torch.finfo(size.dtype).tiny)


def mean_over(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean over the positions that count: 0 where none does.

    Args:
        values: Float tensor of any shape.
        counted: Bool tensor of that shape; None where all positions count.
    """
    if counted is None:
        return values.mean()
    chosen = torch.where(counted, values, 0)
    return chosen.sum() / counted.sum().clamp_min(1)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: sums over a vocabulary in half precision aren't worth much."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (_wide(logits) / temperature).log_softmax(-1)

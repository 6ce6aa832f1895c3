"""The loss of a batch: weighted terms, each read from what the student and the teacher put out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import torch

from prunekit_core.errors import ArgumentError
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.distill.losses import (
    IGNORED,
    cross_entropies,
    divergences,
    mean_over,
    relative_error,
    top_divergences,
)
from prunekit_plugins.distill.outputs import Reader, loss_in


class Lesson(Protocol):
    """What the teacher says about the logits of one batch."""

    def divergence(self, student: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the divergence at every position, tensor ``[...]``, for logits ``[..., classes]``.

        Raises:
            ArgumentError: The logits don't match.
        """


def _mismatch(student: torch.Tensor, shape: tuple[int, ...]) -> ArgumentError:
    vocabulary = student.shape[:-1] == shape[:-1]
    return ArgumentError(
        "The outputs of student and teacher don't match.",
        why=f"logits of shape {tuple(student.shape)} and {shape}",
        hint="where classes were cut: logits=lambda outputs: ... returns those that both have; where a vocabulary was, "
        "cut the teacher's as well, which costs it nothing: vocabulary.plan.apply(teacher)"
        if vocabulary
        else "both have to see the same inputs; logits=lambda outputs: ... says what to compare",
    )


@attrs.frozen(eq=False)
class AllLogits:
    """The logits of a teacher that ran.

    Attributes:
        logits: Tensor ``[..., classes]``.
    """

    logits: torch.Tensor

    def divergence(self, student: torch.Tensor, temperature: float) -> torch.Tensor:
        """See `Lesson`."""
        if student.shape != self.logits.shape:
            raise _mismatch(student, tuple(self.logits.shape))
        return divergences(student, self.logits.to(student.device), temperature)


@attrs.frozen(eq=False)
class TopLogits:
    """The largest logits of a teacher that ran before.

    Attributes:
        values: Tensor ``[..., k]``.
        classes: Int64 tensor ``[..., k]``: which classes these are.
        rest: Tensor ``[...]``: see `top_divergences`.
        size: Number of classes.
    """

    values: torch.Tensor
    classes: torch.Tensor
    rest: torch.Tensor
    size: int

    def divergence(self, student: torch.Tensor, temperature: float) -> torch.Tensor:
        """See `Lesson`."""
        shape = (*self.rest.shape, self.size)
        if tuple(student.shape) != shape:
            raise _mismatch(student, shape)
        parts = [part.to(student.device) for part in (self.values, self.classes, self.rest)]
        return top_divergences(student, parts[0], parts[1], parts[2], temperature)


@attrs.frozen(eq=False)
class Answers:
    """What student and teacher made of one batch.

    Attributes:
        batch: The batch.
        outputs: The student's outputs.
        lesson: What the teacher says about the logits; None where no loss asks.
        hidden: Pairs of hidden states by name: the student's, and of the teacher's the units that the student has.
    """

    batch: Batch
    outputs: Any
    lesson: Lesson | None
    hidden: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@attrs.frozen(eq=False)
class Losses:
    """The weighted losses of a distillation.

    Attributes:
        weights: Name of each loss that counts to its weight.
        temperature: Of the divergence of logits.
        reader: Reads logits and labels.
        loss_fn: The loss of labels, ``loss_fn(outputs, batch)``; None for cross-entropy.
    """

    weights: Mapping[str, float]
    temperature: float
    reader: Reader
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None

    def __call__(self, answers: Answers) -> dict[str, torch.Tensor]:
        """Computes each loss, as a scalar without its weight.

        Raises:
            ArgumentError: The batch or the outputs lack what a loss needs.
        """
        terms = {"logits": self._of_logits, "labels": self._of_labels, "hidden": self._of_hidden}
        return {name: terms[name](answers) for name in self.weights}

    def total(self, found: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Adds losses up with their weights."""
        return torch.stack([self.weights[name] * loss for name, loss in found.items()]).sum()

    def _of_logits(self, answers: Answers) -> torch.Tensor:
        assert answers.lesson is not None
        logits = self.reader.logits_of(answers.outputs, "the student's outputs")
        values = answers.lesson.divergence(logits, self.temperature)
        return mean_over(values, answers.batch.counted(tuple(values.shape)))

    def _of_labels(self, answers: Answers) -> torch.Tensor:
        batch = answers.batch
        if self.loss_fn is not None:
            return _scalar(self.loss_fn(answers.outputs, batch.given), batch)
        own = loss_in(answers.outputs) if self.reader.labels is None else None
        if own is not None:
            return own.reshape(())
        labels = self.reader.labels_of(batch)
        if labels is None:
            raise ArgumentError(
                "A batch has no labels, which a loss needs.",
                where=batch.where,
                hint="labels=lambda batch: batch[1], or loss_fn=lambda outputs, batch: ...",
            )
        logits = self.reader.logits_of(answers.outputs, "the student's outputs")
        if labels.shape != logits.shape[:-1] or labels.is_floating_point():
            raise ArgumentError(
                "The labels don't fit the logits.",
                where=batch.where,
                why=f"labels of shape {tuple(labels.shape)} and {labels.dtype}, logits of shape {tuple(logits.shape)}",
                hint="one class number for each position; other losses: loss_fn=lambda outputs, batch: ...",
            )
        labels = labels.to(logits.device).long()
        _check_range(labels, logits.shape[-1], batch)
        return mean_over(cross_entropies(logits, labels), labels != IGNORED)

    def _of_hidden(self, answers: Answers) -> torch.Tensor:
        errors = [
            relative_error(own, wanted, answers.batch.counted(tuple(own.shape[:-1])))
            for own, wanted in answers.hidden.values()
        ]
        return torch.stack([error.to(errors[0].device) for error in errors]).mean()


def _check_range(labels: torch.Tensor, classes: int, batch: Batch) -> None:
    """Raises `ArgumentError` for a label that is no class; on a GPU such an index would end the process's use of it."""
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ArgumentError(
            "A label is no class.",
            where=f"{batch.where}, position {', '.join(map(str, place))}",
            why=f"it is {int(labels[place])}, and there are {classes} classes, counted from 0",
            hint=f"{IGNORED} marks positions that don't count; after prune_classes labels are numbered anew",
        )


def _scalar(loss: Any, batch: Batch) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ArgumentError("loss_fn must return a scalar tensor.", where=batch.where, why=f"{loss!r}"[:200])
    return loss.reshape(())

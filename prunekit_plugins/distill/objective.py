"""The loss of a student on a batch, beside its teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.distill.hidden import HiddenState, ModuleOutputs, paired
from prunekit_plugins.distill.teacher import Taught, Teacher
from prunekit_plugins.distill.terms import Answers, Losses


class Objective:
    """Runs student and teacher on batches and computes the losses.

    Args:
        student: The student.
        teacher: The teacher; None where no loss asks for one.
        losses: The losses.
        states: The hidden states that are compared.
        half: Whether forwards run under autocast in bfloat16.

    Attributes:
        losses: As given.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher | None, losses: Losses, states: Sequence[HiddenState], *, half: bool
    ) -> None:
        self.losses = losses
        self._student, self._teacher, self._states = student, teacher, states
        self._seen = ModuleOutputs(student, {state.student: state.place for state in states})
        kinds = [parameter.device.type for parameter in student.parameters()]
        self._device, self._half = next(iter(kinds), "cpu"), half

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Surrounds all other calls: the teacher is in eval mode, hidden states are watched."""
        with self._seen.watching(), contextlib.ExitStack() as teaching:
            if self._teacher is not None:
                teaching.enter_context(self._teacher.at_work())
            yield

    def on(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Computes each loss on a batch, as a scalar without its weight.

        Raises:
            ArgumentError: The batch doesn't fit the models, or lacks what a loss needs.
        """
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._half):
            taught = Taught(None) if self._teacher is None else self._teacher.teach(batch)
            example = batch.example
            outputs = example.runner(self._student, example.args, example.kwargs)
        hidden = paired(self._states, self._seen.take(), taught.hidden, batch.where) if self._states else {}
        return self.losses(Answers(batch, outputs, taught.lesson, hidden))

    def mean(self, batches: Iterator[Batch]) -> float:
        """Returns the weighted loss over some batches, a mean over their examples; the student is as it is."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                total += batch.size * float(self.losses.total(self.on(batch)))
                count += batch.size
        return total / count

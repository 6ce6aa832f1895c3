"""The loss of a student on a batch, beside its teacher: for the loop here, and for loops of one's own."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import unwrap
from prunekit_plugins.calibration import Batches
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.distill.hidden import HiddenState, ModuleOutputs, match_hidden, paired
from prunekit_plugins.distill.outputs import Reader
from prunekit_plugins.distill.settings import DistillSettings
from prunekit_plugins.distill.stored_logits import StoredTeacher
from prunekit_plugins.distill.stream import batches_of, first_of
from prunekit_plugins.distill.student.pair import check_pair
from prunekit_plugins.distill.student.trained import modes_kept
from prunekit_plugins.distill.teacher import RunningTeacher, Taught, Teacher, blaming, shapes_of
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
        self._device, self._half, self._ran = next(iter(kinds), "cpu"), half, ""

    @classmethod
    def of(
        cls, student: nn.Module, teacher: Any, settings: DistillSettings, states: Sequence[HiddenState]
    ) -> Objective:
        """Makes what some settings ask for.

        Args:
            student: The student.
            teacher: The teacher, or the folder of stored logits.
            settings: What was asked for.
            states: The hidden states that are compared; see `hidden_states`.

        Raises:
            CheckpointError: The folder holds no logits.
        """
        reader = Reader(settings.logits, settings.labels, settings.class_dim)
        losses = Losses(settings.weights, settings.temperature, reader, settings.loss_fn)
        made: Teacher | None = None
        if isinstance(teacher, nn.Module) and settings.weights.keys() & {"logits", "hidden"}:
            made = RunningTeacher(teacher, reader, states, logits="logits" in settings.weights)
        elif not isinstance(teacher, nn.Module) and "logits" in settings.weights:
            made = StoredTeacher(teacher, settings.temperature)
        return cls(student, made, losses, states, half=settings.precision == "bf16")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Surrounds all other calls: the teacher is in eval mode, hidden states are watched."""
        with self._seen.watching(), contextlib.ExitStack() as teaching:
            if self._teacher is not None:
                teaching.enter_context(self._teacher.at_work())
            yield

    def on(self, batch: Batch, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
        """Computes each loss on a batch, as a scalar without its weight.

        Args:
            batch: The batch.
            model: What is run in the place of the student: a wrapper of it. None for the student.

        Raises:
            ArgumentError: The batch doesn't fit the models, or lacks what a loss needs.
        """
        with blaming(batch, self._ran), torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._half):
            taught = Taught(None) if self._teacher is None else self._teacher.teach(batch)
            self._seen.listen()
            example = batch.example
            outputs = example.runner(model or self._student, example.args, example.kwargs)
        self._ran = shapes_of(batch)
        hidden = paired(self._states, self._seen.take(), taught.hidden, batch.where) if self._states else {}
        return self.losses(Answers(batch, outputs, taught.lesson, hidden))

    def mean(self, batches: Iterator[Batch]) -> tuple[float, str]:
        """Computes the weighted loss over some batches, a mean over their examples; the student is as it is.

        Returns:
            The loss, and the first batch on which it isn't finite; empty if it is on all.
        """
        total, count, where = 0.0, 0, ""
        with torch.no_grad():
            for batch in batches:
                loss = float(self.losses.total(self.on(batch)))
                where = where or ("" if math.isfinite(loss) else batch.where)
                total += batch.size * loss
                count += batch.size
        return total / count, where

    def first_mean(self, batches: Iterator[Batch]) -> float:
        """Computes the same before anything is trained.

        Raises:
            ArgumentError: It isn't finite: no state would be better than another one.
        """
        loss, where = self.mean(batches)
        if where:
            raise ArgumentError(
                "The loss isn't finite on the held-out batches.",
                where=f"held out, {where}",
                why=f"it is {loss} before the first step, and no state of the student would be better",
                hint="look at that batch, and at the outputs of student and teacher on it; half precision may overflow",
            )
        return loss


def hidden_states(teacher: Any, settings: DistillSettings, first: Batch, registry: Registry) -> tuple[HiddenState, ...]:
    """Finds the hidden states that some settings ask for.

    Raises:
        ArgumentError: There are none, or the teacher is a folder.
        PlanError: The plan was made for another model.
    """
    if "hidden" not in settings.weights:
        return ()
    if not isinstance(teacher, nn.Module):
        raise ArgumentError(
            "Stored logits have no hidden states.", hint='leave "hidden" out of the weights, or pass the model'
        )
    assert settings.plan is not None
    return match_hidden(teacher, settings.plan, first.example, registry, settings.hidden)


class DistillationLoss:
    """The loss of `distill`, for a loop of one's own: ``loss = criterion(student, batch)``, then ``loss.backward()``.

    Args:
        student, teacher: As for `distill`. The teacher is in eval mode while it runs.
        batches: As for `distill`; only the first one is read, to find out whether everything fits. Later ones are read
            as `Batches` say.
        plan, weights, temperature, hidden, loss_fn, labels, logits, class_dim, registry: As for `distill`.

    Attributes:
        last: Name of each loss to its value on the last batch, detached and without its weight.

    Raises:
        ArgumentError: An argument is wrong, or student, teacher and batches don't fit each other.
        PlanError: The plan doesn't lead from the teacher to the student.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | str | os.PathLike[str],
        batches: Iterable[Any] | Batches,
        *,
        plan: Plan | None = None,
        weights: Mapping[str, float] | None = None,
        temperature: float = 2.0,
        hidden: Sequence[Layer] | None = None,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
        labels: Callable[[Any], torch.Tensor] | None = None,
        logits: Callable[[Any], torch.Tensor] | None = None,
        class_dim: int | None = None,
        registry: Registry | None = None,
    ) -> None:
        settings = DistillSettings.of(dict(locals()))
        check_pair(student, teacher, plan)
        self._student, self._teacher, self._batches = student, teacher, batches_of(batches, "batches")
        device = next((parameter.device for parameter in student.parameters()), None)
        first = first_of(self._batches, "batches", device)
        states = hidden_states(teacher, settings, first, registry or default_registry())
        self._objective = Objective.of(unwrap(student), teacher, settings, states)
        self.last: dict[str, torch.Tensor] = {}
        with modes_kept(student), torch.no_grad():
            student.eval()
            self._on(first, student)

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Computes the weighted loss on a batch, a scalar.

        Args:
            model: The student, or a wrapper of it (``DistributedDataParallel``).
            batch: The batch, on the device of the student.

        Raises:
            ArgumentError: The model is another one, or the batch lacks what a loss needs.
        """
        if unwrap(model) is not unwrap(self._student):
            raise ArgumentError("The loss is for another student.", hint="make it for the model that is trained")
        return self._on(next(attrs.evolve(self._batches, source=[batch]).read(None)), model)

    def _on(self, batch: Batch, model: nn.Module) -> torch.Tensor:
        teacher = [self._teacher] if isinstance(self._teacher, nn.Module) else []
        with modes_kept(*teacher), self._objective.at_work():
            found = self._objective.on(batch, model)
        self.last = {name: loss.detach() for name, loss in found.items()}
        return self._objective.losses.total(found)

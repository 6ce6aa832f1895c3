"""The training loop of a distillation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.modules.tree import named_tensors
from prunekit_plugins.calibration import Batches
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.checkpoints.provenance import describe
from prunekit_plugins.distill.objective import Objective
from prunekit_plugins.distill.progress import progress_for
from prunekit_plugins.distill.randomness import own_randomness, random_state, set_random_state
from prunekit_plugins.distill.settings import DistillSettings
from prunekit_plugins.distill.state import Journal, Saved, copied, optimizer_state, put_back, set_optimizer_state
from prunekit_plugins.distill.stream import Stream
from prunekit_plugins.distill.student.regularized import Growing, Regularizer
from prunekit_plugins.distill.student.trained import set_training

DECAY = 0.01
"""Weight decay of the optimizer that is made where none is given, on parameters of two dims and more."""


@attrs.frozen(eq=False)
class Data:
    """What a run reads.

    Attributes:
        training: The batches.
        held_out: Those that the best state is chosen on; None for none.
        device: Where they belong; None for where they are.
        teacher: A fingerprint of the teacher; empty where no loss asks for one.
    """

    training: Batches
    held_out: Batches | None
    device: torch.device | None
    teacher: str = ""


class Loop:
    """Trains a student until its steps are made, an evaluation says that it is enough, or a loss isn't finite.

    Args:
        student: The student.
        objective: Its losses.
        data: The batches.
        settings: What was asked for.
        parameters: What is trained, by name.
        total: Number of optimizer steps.
        regularizer: What adds to the gradients of every step, after they were clipped; None for nothing.

    Attributes:
        journal: What was done.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        data: Data,
        settings: DistillSettings,
        parameters: Mapping[str, nn.Parameter],
        total: int,
        regularizer: Regularizer | None = None,
    ) -> None:
        self._student, self._objective, self._data, self._settings = student, objective, data, settings
        self._parameters, self._total, self._regularizer = parameters, total, regularizer
        self._buffers = {n: t for n, t in named_tensors(student).items() if not isinstance(t, nn.Parameter)}
        self._tensors = {**parameters, **self._buffers}
        self._optimizer = settings.optimizer or _adamw(parameters.values(), settings.lr)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._course = settings.course(total)
        self._stream = Stream(data.training, data.device, settings.seed)
        self._devices = sorted({t.device for t in student.parameters() if t.device.type == "cuda"}, key=str)
        self._file = None if settings.checkpoint is None else Path(settings.checkpoint)
        self.journal = Journal()
        self._best = copied(self._tensors)

    def run(self) -> None:
        """Trains; the student has the best state afterwards, or the last one without held-out batches.

        An exception leaves it at its best evaluation, or as it was.

        Raises:
            ArgumentError: A batch doesn't fit the models, lacks what a loss needs, or the first loss isn't finite.
            CheckpointError: The checkpoint can't be read, or is of another run.
        """
        progress = progress_for(self._settings.progress)
        try:
            self._begin()
            while self.journal.step < self._total and not self.journal.stopped:
                self._step()
                self._look_back()
                progress(self.journal.step, self._total)
            self._end()
        except BaseException:
            put_back(self._tensors, self._best)
            raise
        finally:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate

    # -- begin and end

    def _begin(self) -> None:
        if self._file is not None and self._file.exists():
            self._go_on(Saved.read(self._file, self._request(), self._tensors))
            return
        if self._data.held_out is not None:
            self._evaluate()
        if self._file is not None:
            self._save()  # where that isn't possible, nothing is lost yet

    def _go_on(self, saved: Saved) -> None:
        self.journal = saved.journal
        reached = self._stream.go_to(saved.journal.epoch, saved.journal.number)
        if reached < saved.journal.number:
            raise CheckpointError(
                "The checkpoint is of another run.",
                where=str(self._file),
                why=f"it had read {saved.journal.number} batches of an epoch, and an epoch has {reached}",
                hint="go on with the same batches, or choose another file",
            )
        put_back(self._tensors, saved.student)
        if self._data.held_out is not None:
            self._best = {name: value.to(self._tensors[name].device) for name, value in saved.best.items()}
        if isinstance(self._regularizer, Growing):
            self._regularizer.load_state_dict(saved.journal.regularizer)
        set_optimizer_state(self._optimizer, *saved.optimizer)
        set_random_state(*saved.randomness)

    def _end(self) -> None:
        if self._data.held_out is None:
            self.journal.best_step = self.journal.step
        if self._file is not None:
            self._save()
        if self._data.held_out is not None:
            put_back(self._tensors, self._best)

    def _save(self) -> None:
        assert self._file is not None
        grown = self._regularizer.state_dict() if isinstance(self._regularizer, Growing) else None
        journal = attrs.evolve(self.journal, epoch=self._stream.epoch, number=self._stream.number, regularizer=grown)
        best = {} if self._data.held_out is None else self._best
        saved = Saved(journal, self._tensors, best, optimizer_state(self._optimizer), random_state(self._devices))
        saved.write(self._file, self._request())

    def _request(self) -> dict[str, Any]:
        """What has to be the same in a run that goes on from a checkpoint."""
        settings = self._settings
        names = ("temperature", "accumulate", "warm_up", "schedule", "clip", "precision", "seed", "freeze_batchnorm")
        return {
            "steps": self._total,
            "rates": self._rates,
            "optimizer": type(self._optimizer).__name__,
            "weights": dict(settings.weights),
            "held_out": self._data.held_out is not None,
            "evaluate_every": settings.interval(self._total),
            "trained": sorted(self._parameters),
            "teacher": self._data.teacher,
            "regularizer": None if self._regularizer is None else describe(self._regularizer, {}),
            **{name: getattr(settings, name) for name in names},
        }

    # -- steps

    def _step(self) -> None:
        """Makes one optimizer step, or notes why there is none."""
        settings = self._settings
        set_training(self._student, freeze_batchnorm=settings.freeze_batchnorm)
        factor = self._course.factor(self.journal.step)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        statistics = copied(self._buffers)
        found, places = [], []
        for _ in range(settings.accumulate):
            batch = self._stream.next()
            places.append(f"{batch.where} of epoch {self._stream.epoch}")
            found.append(self._backward(batch))
        norm = nn.utils.clip_grad_norm_(list(self._parameters.values()), settings.clip or math.inf)
        values = torch.stack([*found, norm.to(found[0]).expand(found[0].shape)]).tolist()
        trouble = _not_finite(values, self._names(), places)
        if trouble:
            put_back(self._buffers, statistics)
            self._stop(trouble)
            return
        if self._regularizer is not None:
            self._regularizer.regularize()
        self._optimizer.step()
        self.journal.step += 1
        for name, column in zip(self._names(), zip(*values[:-1], strict=True), strict=True):
            self.journal.losses.setdefault(name, []).append(sum(column) / settings.accumulate)

    def _names(self) -> Sequence[str]:
        return list(self._objective.losses.weights)

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Adds the gradients of one batch; returns its losses, tensor ``[losses]``."""
        found = self._objective.on(batch)
        loss = self._objective.losses.total(found)
        if not loss.requires_grad:
            raise ArgumentError(
                "The loss doesn't depend on what is trained.",
                where=batch.where,
                hint="a forward under torch.no_grad() has no gradients; train=... says which parameters are trained",
            )
        (loss / self._settings.accumulate).backward()
        return torch.stack([value.detach().float() for value in found.values()])

    def _stop(self, trouble: str) -> None:
        if not self.journal.step:
            raise ArgumentError(
                "The loss isn't finite at the first step.",
                where=trouble,
                hint="look at the outputs of student and teacher on that batch; half precision may overflow",
            )
        self.journal.stopped, self.journal.diverged = f"step {self.journal.step + 1}: {trouble}", True

    # -- evaluation

    def _look_back(self) -> None:
        """Evaluates and saves after a step, where that is due."""
        step, settings = self.journal.step, self._settings
        due = step % settings.interval(self._total) == 0 or step == self._total
        if self._data.held_out is not None and due and not self.journal.stopped:
            self._evaluate()
        if due and isinstance(self._regularizer, Growing):
            self._regularizer.grow()
        if self._file is not None and step % settings.save_every == 0:
            self._save()

    def _evaluate(self) -> None:
        assert self._data.held_out is not None
        self._student.eval()
        journal, batches = self.journal, self._data.held_out.read(self._data.device)
        with own_randomness(self._devices):
            loss, where = self._objective.mean(batches) if journal.step else (self._objective.first_mean(batches), "")
        if where:
            journal.stopped, journal.diverged = f"step {journal.step}: the held-out loss is {loss} on {where}", True
            return
        if loss < journal.best_loss:
            self._best, journal.best_step = copied(self._tensors), journal.step
        journal.held_out.append((journal.step, loss))
        patience = self._settings.patience
        since = sum(step > journal.best_step for step, _ in journal.held_out)
        if patience is not None and since >= patience:
            journal.stopped = f"step {journal.step}: no better on the held-out batches since step {journal.best_step}"


def _not_finite(values: Sequence[Sequence[float]], names: Sequence[str], places: Sequence[str]) -> str:
    """Says which loss isn't finite, and where; empty if all are, and the gradients."""
    for column, place in zip(values, places, strict=False):
        for name, value in zip(names, column, strict=True):
            if not math.isfinite(value):
                return f"the loss {name!r} is {value} on {place}"
    return "" if math.isfinite(values[-1][0]) else f"the gradients aren't finite on {', '.join(places)}"


def _adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)

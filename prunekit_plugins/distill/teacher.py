"""Teachers: what says, batch by batch, what the student should put out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import nn

from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.record.recorder import check_recordable
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.checkpoints.stored_values import Cut
from prunekit_plugins.distill.hidden import HiddenState, ModuleOutputs
from prunekit_plugins.distill.outputs import Reader
from prunekit_plugins.distill.terms import AllLogits, Lesson


@attrs.frozen(eq=False)
class Taught:
    """What a teacher says about one batch.

    Attributes:
        lesson: About the logits; None where no loss asks.
        hidden: Dotted path of each module that is compared to what it returned, with all units.
    """

    lesson: Lesson | None
    hidden: Mapping[str, torch.Tensor] = attrs.field(factory=dict)


class Teacher(Protocol):
    """Says what the student should put out."""

    def teach(self, batch: Batch) -> Taught:
        """Returns what the teacher makes of a batch.

        Raises:
            ArgumentError: Nothing is known about the batch, or its outputs aren't understood.
        """

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """Returns what surrounds all calls of `teach`."""


class RunningTeacher:
    """A model that runs beside the student, in eval mode and without gradients.

    Args:
        model: The model; it may lie on another device than the batches.
        reader: Reads its logits.
        states: The hidden states that are compared.
        logits: Whether a loss asks for logits.
    """

    def __init__(self, model: nn.Module, reader: Reader, states: Sequence[HiddenState], *, logits: bool) -> None:
        self._model, self._reader, self._logits = model, reader, logits
        self._seen = ModuleOutputs(model, {state.teacher: state.place for state in states})
        devices = {tensor.device for tensor in model.parameters()}
        single = len(devices) == 1 and not any(device.type == "meta" for device in devices)
        self._device = devices.pop() if single else None  # else whatever spread it moves what its layers read

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Sets the model to eval mode and watches its hidden states; see `modes_kept` for what puts modes back."""
        self._model.eval()
        with self._seen.watching():
            yield

    def teach(self, batch: Batch) -> Taught:
        """Runs the model; see `Teacher`."""
        example, device = batch.example, self._device
        args, kwargs = example.args, example.kwargs
        if device is not None:
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))
        with torch.no_grad():
            outputs = example.runner(self._model, args, kwargs)
            lesson = AllLogits(self._reader.logits_of(outputs, "the teacher's outputs")) if self._logits else None
        return Taught(lesson, self._seen.take())


class TeacherOnDisk:
    """A model on the meta device, which runs from its files: a tensor is in memory while an operation uses it.

    Args:
        model: The model.
        weights: A checkpoint on disk with its weights.
        reader: Reads its logits.
        registry: Where rules and readers of files are found.

    Raises:
        CheckpointError: The checkpoint can't be read, or is for another model.
    """

    def __init__(self, model: nn.Module, weights: str | os.PathLike[str], reader: Reader, registry: Registry) -> None:
        target = check_recordable(model)
        self._watched = Watched(target, registry, Cut(registry.weights(weights, target), Plan()))
        self._reader = reader

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """See `Teacher`."""
        return contextlib.nullcontext()

    def teach(self, batch: Batch) -> Taught:
        """Runs the model; see `Teacher`."""
        outputs = self._watched.run(batch, lambda seen: None)
        return Taught(AllLogits(self._reader.logits_of(outputs, "the teacher's outputs")))

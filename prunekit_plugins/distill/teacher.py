"""Teachers: what says, batch by batch, what the student should put out."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, PrunekitError
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_core.record.recorder import check_recordable
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.checkpoints.stored_values import Cut
from prunekit_plugins.checkpoints.tensorfile import values_as_bytes
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


@contextlib.contextmanager
def blaming(batch: Batch, ran: str) -> Iterator[None]:
    """Says which batch it was where a forward raises within a ``with`` statement.

    Args:
        batch: The batch.
        ran: What `shapes_of` said of a batch that ran; empty where none did yet.

    Raises:
        ArgumentError: A forward raised; memory that runs out and prunekit's own errors come as they are.
    """
    try:
        yield
    except (torch.OutOfMemoryError, PrunekitError):
        raise
    except Exception as error:  # the model's own code may fail in any way
        raise ArgumentError(
            "The model's forward pass raised on a batch.",
            where=batch.where,
            why=f"{type(error).__name__}: {str(error)[:400]}; its inputs are {shapes_of(batch)}"
            + (f", and those of a batch that ran were {ran}" if ran else ""),
            hint="all batches must be inputs of the model, the last one of an epoch as well, which drop_last=True of "
            "a DataLoader leaves out; with targets in them: Batches(loader, inputs=lambda batch: batch[0])",
        ) from error


def shapes_of(batch: Batch) -> str:
    """Words the shapes and dtypes of a batch's inputs."""
    leaves = pytree.tree_leaves((batch.example.args, batch.example.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    words = [f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors]
    return ", ".join(words) or "no tensors"


class Teacher(Protocol):
    """Says what the student should put out."""

    def teach(self, batch: Batch) -> Taught:
        """Returns what the teacher makes of a batch.

        Raises:
            ArgumentError: Nothing is known about the batch, or its outputs aren't understood.
        """

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """Returns what surrounds all calls of `teach`."""


SAMPLED = 256
"""Values of each parameter that a fingerprint is made of."""


def fingerprint(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Makes a short text that is another one for another teacher: of names, shapes and some values of parameters.

    Args:
        parameters: Names and values, in any order; the dtype doesn't count.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda pair: pair[0]):
        values = tensor.detach().reshape(-1)
        some = values[:: max(1, len(values) // SAMPLED)][:SAMPLED].float().cpu().contiguous()
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(values_as_bytes(some))
    return found.hexdigest()[:24]


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
        self._seen.listen()
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

    Attributes:
        fingerprint: See `fingerprint`; of the values in the files.

    Raises:
        CheckpointError: The checkpoint can't be read, or is for another model.
    """

    def __init__(self, model: nn.Module, weights: str | os.PathLike[str], reader: Reader, registry: Registry) -> None:
        target = check_recordable(model)
        stored = registry.weights(weights, target)
        self._watched = Watched(target, registry, Cut(stored, Plan()))
        self._reader = reader
        names = [name for name, tensor in named_tensors(target).items() if isinstance(tensor, nn.Parameter)]
        self.fingerprint = fingerprint((name, stored.read(name, Plan())) for name in names)

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """See `Teacher`."""
        return contextlib.nullcontext()

    def teach(self, batch: Batch) -> Taught:
        """Runs the model; see `Teacher`."""
        outputs = self._watched.run(batch, lambda seen: None)
        return Taught(AllLogits(self._reader.logits_of(outputs, "the teacher's outputs")))

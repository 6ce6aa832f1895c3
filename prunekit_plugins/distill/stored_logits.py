"""The largest logits of a teacher on disk: it runs once, and every distillation after that reads them.

A folder holds one safetensors file for each batch. Examples are found by a digest of their inputs, so batches may come
in another order and be put together otherwise, as long as each example is the same tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.arguments import is_count, is_number
from prunekit_core.errors import ArgumentError, CheckpointError
from prunekit_core.files import storing
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import unwrap
from prunekit_core.torch_private.trees import pytree
from prunekit_plugins.calibration import Batches
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.checkpoints.tensorfile import TensorFile, values_as_bytes, write_named
from prunekit_plugins.distill.outputs import Reader
from prunekit_plugins.distill.settings import Progress
from prunekit_plugins.distill.stream import batches_of, first_of
from prunekit_plugins.distill.student.trained import modes_kept
from prunekit_plugins.distill.teacher import RunningTeacher, Taught, Teacher, TeacherOnDisk, fingerprint
from prunekit_plugins.distill.terms import AllLogits, TopLogits

KEY, FORMAT = "prunekit_logits", "1"
PARTS = ("values", "classes", "rest")


@attrs.frozen
class Place:
    """Where the logits of an example are: a file, and a row of its tensors."""

    file: Path
    row: int


def digests(batch: Batch) -> list[str]:
    """Fingerprints the inputs of each example of a batch: all tensors, what has no example dim for every one."""
    leaves = pytree.tree_leaves((batch.example.args, batch.example.kwargs))
    tensors = [leaf.detach().cpu().contiguous() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    found = [hashlib.sha256() for _ in range(batch.size)]
    for tensor in tensors:
        split = tensor.dim() > 0 and len(tensor) == batch.size
        for number, one in enumerate(found):
            part = tensor[number] if split else tensor
            one.update(f"{part.dtype}{tuple(part.shape)}".encode())
            one.update(values_as_bytes(part))
    return [one.hexdigest() for one in found]


def fingerprint_of(teacher: nn.Module | str | os.PathLike[str]) -> str:
    """Returns the fingerprint of a model's parameters, or the one that stored logits were written with."""
    if isinstance(teacher, nn.Module):
        named = named_tensors(unwrap(teacher)).items()
        return fingerprint((name, tensor) for name, tensor in named if isinstance(tensor, nn.Parameter))
    return str(_index(Path(teacher))[1].get("teacher", ""))


class StoredTeacher:
    """Logits that `store_logits` wrote, as a teacher.

    Args:
        folder: The folder.
        temperature: Of the distillation; the sums over the other classes are of one temperature.

    Raises:
        CheckpointError: The folder holds no logits, or a file can't be read.
        ArgumentError: They are of another temperature.
    """

    def __init__(self, folder: str | os.PathLike[str], temperature: float) -> None:
        self._folder = Path(folder)
        self._places, about = _index(self._folder)
        if not self._places:
            raise CheckpointError(
                "The folder holds no stored logits.", where=str(self._folder), hint="write them with pk.store_logits"
            )
        if about["temperature"] != temperature:
            raise ArgumentError(
                "The stored logits are of another temperature.",
                where=str(self._folder),
                why=f"they are of {about['temperature']}, and temperature={temperature}",
                hint=f"temperature={about['temperature']}, or store them again",
            )
        self._size = int(about["classes"])
        self._files = {place.file: TensorFile(place.file) for place in self._places.values()}

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """See `Teacher`."""
        return contextlib.nullcontext()

    def teach(self, batch: Batch) -> Taught:
        """Reads the logits of a batch; see `Teacher`."""
        places = []
        for number, digest in enumerate(digests(batch)):
            if digest not in self._places:
                raise ArgumentError(
                    "There are no stored logits of an example.",
                    where=f"{batch.where}, example {number}, in {self._folder}",
                    why="its inputs aren't among those that the teacher saw, bit for bit",
                    hint="store the logits of the same batches: no random augmentation, and the same padding",
                )
            places.append(self._places[digest])
        values, classes, rest = (self._rows(part, places) for part in PARTS)
        return Taught(TopLogits(values, classes.long(), rest, self._size))

    def _rows(self, part: str, places: list[Place]) -> torch.Tensor:
        rows = [self._files[place.file].read(part, (place.row, place.row + 1)) for place in places]
        return torch.cat(rows)


def store_logits(
    teacher: nn.Module,
    batches: Iterable[Any] | Batches,
    folder: str | os.PathLike[str],
    *,
    top: int = 64,
    temperature: float = 2.0,
    logits: Callable[[Any], torch.Tensor] | None = None,
    class_dim: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> int:
    """Runs a teacher once over some batches and stores its largest logits, for ``distill(student, folder, batches)``.

    Batches whose examples are stored already are skipped, so a run that was stopped goes on.

    Args:
        teacher: The teacher; it runs in eval mode and isn't changed.
        batches: The batches, as `distill` will read them.
        folder: Where they go; it is made if it isn't there.
        top: How many classes are stored of each position; all others are one number, the logarithm of their sum.
        temperature: The temperature at which they will be used.
        logits, class_dim: As for `distill`.
        weights: A checkpoint on disk with the weights of a teacher on the meta device: a safetensors file or a folder.
            Every batch reads it once.
        progress: Called with the number of batches that are done, and of all.
        registry: Where rules are found; None for the default registry.

    Returns:
        How many batches were run.

    Raises:
        ArgumentError: An argument is wrong, there are no batches, or the outputs aren't understood.
        CheckpointError: The folder holds logits of another number of classes, another ``top``, or another temperature;
            or the weights can't be read.
        StorageError: The system refuses to write there.
    """
    if not is_count(top):
        raise ArgumentError("top must be a positive whole number.", why=f"got {top!r}")
    if not is_number(temperature) or temperature <= 0:
        raise ArgumentError("temperature must be a positive number.", why=f"got {temperature!r}")
    if not isinstance(teacher, nn.Module):
        raise ArgumentError("The teacher is a module.", why=f"got {type(teacher).__name__}")
    place, source, done = Path(folder), batches_of(batches, "batches"), 0
    first_of(source, "batches", None)
    with storing(place):
        place.mkdir(parents=True, exist_ok=True)
    known, about = _index(place)
    reader = Reader(logits, None, class_dim)
    running: Teacher = RunningTeacher(teacher, reader, (), logits=True)
    if weights is not None:
        running = TeacherOnDisk(teacher, weights, reader, registry or default_registry())
    whose = running.fingerprint if isinstance(running, TeacherOnDisk) else fingerprint_of(teacher)
    if about:  # the largest logits of fewer classes are no others, so `top` counts up to their number
        _check_alike(place, about, _about(about["classes"], temperature, top, whose))
    with modes_kept(teacher), running.at_work():
        for number, batch in enumerate(source.read(None), 1):
            names = digests(batch)
            if not all(name in known for name in names):
                lesson = running.teach(batch).lesson
                assert isinstance(lesson, AllLogits)
                done += 1
                own = _about(lesson.logits.shape[-1], temperature, top, whose)
                _check_alike(place, about, own)
                about = own
                _write(place, names, lesson.logits, own)
                known.update(dict.fromkeys(names, Place(place, 0)))
            if progress is not None:
                progress(number, source.count() or number)
    return done


def _about(classes: int, temperature: float, top: int, teacher: str) -> dict[str, Any]:
    """Says what the logits of a folder are of, all alike."""
    return {"classes": classes, "temperature": float(temperature), "top": min(top, classes), "teacher": teacher}


def _check_alike(folder: Path, about: dict[str, Any], own: dict[str, Any]) -> None:
    if about and about["teacher"] != own["teacher"]:
        raise CheckpointError(
            "The folder holds logits of another teacher.",
            where=str(folder),
            why="they were stored by a model with other weights",
            hint="choose another folder, or store them with the same teacher",
        )
    if about and about != own:
        raise CheckpointError(
            "The folder holds logits of another teacher.",
            where=str(folder),
            why=f"those have {about['classes']} classes at temperature {about['temperature']}, these "
            f"{own['classes']} at {own['temperature']}; the largest {about['top']} are stored, and {own['top']} were "
            "asked for",
            hint="choose another folder",
        )


def _write(folder: Path, names: list[str], logits: torch.Tensor, about: dict[str, Any]) -> None:
    if len(logits) != len(names):
        raise ArgumentError(
            "The logits of a batch don't lie along its examples.",
            why=f"there are {len(names)} examples, and logits of shape {tuple(logits.shape)}",
            hint="logits=lambda outputs: ... may put the examples first",
        )
    wide = logits.detach().float()
    values, classes = wide.topk(about["top"], dim=-1)
    rest = (wide / about["temperature"]).scatter(-1, classes, -torch.inf).logsumexp(-1)
    tensors = {"values": values, "classes": classes.to(torch.int32), "rest": rest}
    metadata = {KEY: FORMAT, "about": json.dumps(about), "examples": json.dumps(names)}
    name = f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:24]}.safetensors"
    write_named(folder / name, tensors, metadata)


def _index(folder: Path) -> tuple[dict[str, Place], dict[str, Any]]:
    """Reads which examples a folder holds, and what their logits are of."""
    found: dict[str, Place] = {}
    about: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        metadata = TensorFile(path).metadata
        if metadata.get(KEY) != FORMAT:
            raise CheckpointError("The file holds no stored logits.", where=str(path))
        about = json.loads(metadata["about"])
        names = json.loads(metadata["examples"])
        found.update({name: Place(path, row) for row, name in enumerate(names)})
    return found, about

"""The state of a run: what a checkpoint needs to go on as if the run had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from prunekit_core.errors import CheckpointError
from prunekit_plugins.checkpoints.tensorfile import TensorFile, write_named

KEY, FORMAT = "prunekit_distillation", "1"
Tensors = Mapping[str, torch.Tensor]


@attrs.define(eq=False)
class Journal:
    """What a run has done so far.

    Attributes:
        step: Optimizer steps made.
        epoch, number: Where the stream of batches is.
        losses: Name of each loss to its values, step by step.
        held_out: Steps and the loss on held-out batches.
        best_step: Of the best state.
        stopped: Why it ended early.
        diverged: Whether a loss or a gradient wasn't finite.
        regularizer: State of a regularizer that gets stronger; None for none.
    """

    step: int = 0
    epoch: int = 0
    number: int = 0
    losses: dict[str, list[float]] = attrs.field(factory=dict)
    held_out: list[tuple[int, float]] = attrs.field(factory=list)
    best_step: int = 0
    stopped: str = ""
    diverged: bool = False
    regularizer: Any = None

    @property
    def best_loss(self) -> float:
        """The lowest loss on held-out batches."""
        return min((loss for _, loss in self.held_out), default=float("inf"))


def copied(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Copies the values of some tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(tensors: Tensors, values: Tensors) -> None:
    """Writes values into tensors of the same names."""
    for name, value in values.items():
        tensors[name].copy_(value)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the state of an optimizer: tensors by name, and numbers by name.

    Raises:
        CheckpointError: It holds something else.
    """
    tensors, numbers = {}, {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}/{key}"] = value.detach()
            elif value is None or isinstance(value, bool | int | float):
                numbers[f"{place}/{key}"] = value
            else:
                raise CheckpointError(
                    "The state of the optimizer can't be stored.",
                    where=type(optimizer).__name__,
                    why=f"{key} is {type(value).__name__}, no tensor and no number",
                    hint="leave checkpoint= out, or use another optimizer",
                )
    return tensors, numbers


def set_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """Gives an optimizer a state that `optimizer_state` returned, bit for bit.

    ``load_state_dict`` would convert averages to the dtype of their parameters.
    """
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for name, value in (*tensors.items(), *numbers.items()):
        place, _, key = name.partition("/")
        parameter = parameters[int(place)]
        if isinstance(value, torch.Tensor) and value.dim():
            value = value.to(parameter.device)
        optimizer.state.setdefault(parameter, {})[key] = value


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@attrs.frozen(eq=False)
class Saved:
    """What a checkpoint holds.

    Attributes:
        journal: What was done.
        student: Values of the student by name.
        best: Those of the best state.
        optimizer: State of the optimizer: tensors and numbers by name.
        randomness: States of the generators: tensors, and plain data.
    """

    journal: Journal
    student: Tensors
    best: Tensors
    optimizer: tuple[Tensors, Mapping[str, Any]]
    randomness: tuple[dict[str, torch.Tensor], dict[str, Any]]

    def write(self, path: Path, run: Mapping[str, Any]) -> None:
        """Writes the checkpoint; it appears whole or not at all.

        Args:
            path: The file.
            run: What the run was asked for, as plain data: another run doesn't go on from here.

        Raises:
            StorageError: The system refuses.
        """
        parts = {
            "student": self.student,
            "best": self.best,
            "optimizer": self.optimizer[0],
            "random": self.randomness[0],
        }
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        about = {
            "run": run,
            "journal": attrs.asdict(self.journal),
            "optimizer": self.optimizer[1],
            "random": self.randomness[1],
        }
        write_named(path, tensors, {KEY: FORMAT, "about": json.dumps(about)})

    @classmethod
    def read(cls, path: Path, run: Mapping[str, Any], student: Tensors) -> Saved:
        """Reads a checkpoint of the same run.

        Args:
            path: The file.
            run: What this run was asked for.
            student: The tensors that have to be in it.

        Raises:
            CheckpointError: The file is damaged, no such checkpoint, or of another run.
        """
        file = TensorFile(path)
        if file.metadata.get(KEY) != FORMAT:
            raise CheckpointError(
                "The file is no checkpoint of a distillation.", where=str(path), hint="choose another name"
            )
        about = json.loads(file.metadata["about"])
        parts: dict[str, dict[str, torch.Tensor]] = {"student": {}, "best": {}, "optimizer": {}, "random": {}}
        for name in file.tensors:
            part, _, own = name.partition("/")
            parts[part][own] = file.read(name)
        _check_run(path, about["run"], run)
        _check_shapes(path, parts["student"], student)
        journal = Journal(**about["journal"])
        journal.held_out = [(step, loss) for step, loss in journal.held_out]
        optimizer = (parts["optimizer"], about["optimizer"])
        return cls(journal, parts["student"], parts["best"], optimizer, (parts["random"], about["random"]))


def _check_run(path: Path, stored: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    other = [name for name in run if stored.get(name) != json.loads(json.dumps(run[name]))]
    if other:
        raise CheckpointError(
            "The checkpoint is of another run.",
            where=str(path),
            why="; ".join(f"{name} was {stored.get(name)!r}, and is {run[name]!r}" for name in other[:3]),
            hint="go on with the same arguments, or choose another file",
        )


def _check_shapes(path: Path, stored: Tensors, student: Tensors) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in (stored, student)]
    other = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    if other:
        raise CheckpointError(
            "The checkpoint is of another student.",
            where=f"{other[0]} in {path}",
            why=f"there it has the shape {shapes[0].get(other[0])}, here {shapes[1].get(other[0])}",
        )

"""The steps of a shrinking, one after the other, each stored when its halves are done."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.modules.tree import ModelTree
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.budgets.budget import Budget
from prunekit_plugins.calibration import Batches
from prunekit_plugins.checkpoints import load, save
from prunekit_plugins.distill import Distillation, distill
from prunekit_plugins.distill.progress import progress_for
from prunekit_plugins.distill.randomness import own_randomness, seed_epoch
from prunekit_plugins.distill.settings import Progress
from prunekit_plugins.distill.stream import generator_of
from prunekit_plugins.prune import prune
from prunekit_plugins.shrink.folder import Folder
from prunekit_plugins.shrink.path import CostPath
from prunekit_plugins.shrink.result import Cut, Shrinking, Step, Training
from prunekit_plugins.shrink.settings import ShrinkSettings

LAYERS = ("ignored_layers",)
"""Arguments of `prune` that may name layers; a cut may change their names."""


@attrs.frozen(eq=False)
class Data:
    """What a shrinking reads.

    Attributes:
        example: Example inputs.
        calibration: Batches for the cuts.
        training: Batches for the training.
        held_out: Batches that states are chosen on.
    """

    example: Any
    calibration: Batches
    training: Batches
    held_out: Batches


@attrs.define(eq=False)
class Student:
    """A copy of the model on its way.

    Attributes:
        model: The copy.
        options: The arguments of `prune`, with the copy's modules and parameters for those of the model.
    """

    model: nn.Module
    options: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any]) -> Student:
        """Copies a model.

        Args:
            model: The model.
            options: Arguments of `prune`; they may name layers of the model, or hold its modules and parameters.

        Raises:
            ArgumentError: There is no layer of a name.
        """
        twins: dict[int, Any] = {}
        own = copy.deepcopy(model, twins)
        found = {name: _translated(value, twins) for name, value in options.items()}
        for name in LAYERS:
            if found.get(name):
                found[name] = _modules(own, found[name])
        return cls(own, found)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments for the next cut, without layers that have left."""
        present = set(self.model.modules())
        return {
            name: [layer for layer in value if not isinstance(layer, nn.Module) or layer in present]
            if name in LAYERS and value
            else value
            for name, value in self.options.items()
        }


def _translated(value: Any, twins: Mapping[int, Any]) -> Any:
    """Puts the copy's modules and parameters in the place of the model's, in collections as well."""
    if isinstance(value, nn.Module | torch.Tensor):
        return twins.get(id(value), value)
    if type(value) is dict:
        return {_translated(key, twins): _translated(item, twins) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_translated(item, twins) for item in value)
    return value


def _modules(model: nn.Module, layers: Sequence[Any]) -> list[Any]:
    """Puts modules in the place of their names, which a cut may change."""
    tree = ModelTree(model)
    return [tree.modules.get(layer, layer) if isinstance(layer, str) else layer for layer in layers]


class Run:
    """One shrinking.

    Args:
        model: The model; it is the teacher and isn't changed.
        data: What is read.
        settings: What was asked for.
        path: How the costs fall.
        shares: Optimizer steps of each step.
        registry: Where plugins are found.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: ShrinkSettings,
        path: CostPath,
        shares: Sequence[int],
        registry: Registry,
    ) -> None:
        self._model, self._data, self._settings, self._path = model, data, settings, path
        self._shares, self._registry = shares, registry
        self._progress = progress_for(settings.progress)
        self._steps: list[Step] = []
        self._folder: Folder | None = None
        self._store: Callable[[], None] = lambda: None

    def stored_in(self, folder: Folder, request: Mapping[str, Any]) -> None:
        """Goes on with what a folder holds, and stores there what is done.

        Raises:
            CheckpointError: It holds something else.
        """
        self._folder, self._steps = folder, folder.open(request)
        self._store = lambda: folder.write(request, self._steps)

    def made(self, loss: float) -> Shrinking:
        """Makes all steps that aren't made yet.

        Args:
            loss: That of the model on the held-out batches.
        """
        student = self._begin()
        for number in range(self._next(), len(self._shares) + 1):
            student = self._step(number, student, loss)
            if self._broken():
                break
        return self._result(student.model)

    # -- where it stands

    def _next(self) -> int:
        """The number of the first step that isn't done."""
        done = sum(step.training is not None for step in self._steps)
        return len(self._shares) + 1 if self._broken() else done + 1

    def _broken(self) -> str:
        """Why no further step is made; empty where the next one may be."""
        last = self._steps[-1] if self._steps else None
        if last is None or last.training is None or not last.training.diverged:
            return ""
        return f"in the training after cut {last.number}: {last.training.stopped}"

    def _plan(self) -> Plan:
        """What went in all cuts that were made."""
        plan = Plan()
        for step in self._steps:
            plan = plan.then(step.cut.plan)
        return plan

    def _begin(self) -> Student:
        """The model as it was where the folder ends, or a copy of the uncut one."""
        if self._folder is None or not self._steps:
            return Student.of(self._model, self._settings.prune)
        last = self._steps[-1]
        path = self._folder.cut(last.number) if last.training is None else self._folder.trained(last.number)
        if last.training is not None:
            self._folder.done_with(last.number)
        return self._read(path)

    def _read(self, path: Any) -> Student:
        student = Student.of(self._model, self._settings.prune)
        load(student.model, path, registry=self._registry)
        return student

    def _settled(self, student: Student, path: Any, protocol: Any) -> Student:
        """Stores a model, and returns what a run that goes on from there reads: strides may differ, and with them
        the last bits of what is computed."""
        save(student.model, path, plan=self._plan(), protocol=protocol)
        return self._read(path)

    # -- a step

    def _step(self, number: int, student: Student, loss: float) -> Student:
        if len(self._steps) < number:
            before = loss if number == 1 else self._steps[-1].loss_after
            assert before is not None
            cut = self._cut(number, student)
            self._steps.append(Step(number, cut, None, before))
            if self._folder is not None:
                student = self._settled(student, self._folder.cut(number), cut.protocol)
            self._store()
        training = self._trained(number, student.model)
        self._steps[-1] = attrs.evolve(self._steps[-1], training=training)
        if self._folder is not None:
            student = self._settled(student, self._folder.trained(number), self._steps[-1].cut.protocol)
            self._store()
            self._folder.done_with(number)
        return student

    def _cut(self, number: int, student: Student) -> Cut:
        """Cuts a model in place."""
        present = self._path.dense
        if self._steps:
            present = {name: after for name, (_, after) in self._steps[-1].cut.costs.items()}
        target, calibration = self._path.target_at(number, present), self._data.calibration
        with own_randomness(_cards(self._model), generator_of(calibration)):
            seed_epoch(self._settings.seed, number)
            generator = generator_of(calibration)
            if generator is not None:
                generator.manual_seed(self._settings.seed + number)
            result = prune(
                student.model, self._data.example, target=target, calibration=calibration, registry=self._registry,
                **student.arguments(),
            )  # fmt: skip
        after = Budget.on(result.graph, self._path.target).present
        costs = {name: (before, after[name]) for name, before in present.items() if name in after}
        costs |= {name: pair for name, pair in result.preview.costs.items() if name not in costs}
        return Cut(result.plan, self._path.costs(number), costs, result.report, result.protocol)

    def _trained(self, number: int, model: nn.Module) -> Training:
        """Trains a model in place."""
        options = dict(self._settings.distill)
        options.pop("epochs", None)
        make = options.pop("optimizer", None)
        if make is not None:
            options["optimizer"] = make([parameter for parameter in model.parameters() if parameter.requires_grad])
        options["steps"] = self._shares[number - 1]
        if number == len(self._shares):
            options.pop("regularizer", None)
        found = distill(
            model, self._model, self._data.training, plan=self._plan(), held_out=self._data.held_out,
            seed=self._settings.seed + number, progress=self._overall(number), registry=self._registry,
            checkpoint=None if self._folder is None else self._folder.training(number), **options,
        )  # fmt: skip
        return _training(found)

    def _overall(self, number: int) -> Progress:
        """Counts the optimizer steps of all steps."""
        done, total = sum(self._shares[: number - 1]), sum(self._shares)
        return lambda now, of: self._progress(done + now, total)

    def _result(self, model: nn.Module) -> Shrinking:
        notes = dict.fromkeys(note for step in self._steps if step.training for note in step.training.notes)
        folder = None if self._folder is None else self._folder.path
        last = self._steps[-1]
        return Shrinking(model, self._plan(), last.cut.report, tuple(self._steps), folder, self._broken(), tuple(notes))


def _training(found: Distillation) -> Training:
    return Training(
        found.steps,
        found.best_step,
        {name: tuple(values) for name, values in found.losses.items()},
        found.held_out,
        found.stopped,
        found.diverged,
        found.notes,
    )


def _cards(model: nn.Module) -> list[torch.device]:
    """Devices of a model that have random generators of their own."""
    return sorted({tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}, key=str)

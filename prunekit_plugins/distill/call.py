"""The call: a student learns from its teacher, in place."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit_core.errors import ArgumentError
from prunekit_core.modules.exclusive import exclusive
from prunekit_core.modules.tree import Layer
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry
from prunekit_core.record.recorder import unwrap
from prunekit_plugins.calibration import Batches
from prunekit_plugins.distill.loop import Data, Loop
from prunekit_plugins.distill.objective import Objective, hidden_states
from prunekit_plugins.distill.outputs import Reader
from prunekit_plugins.distill.randomness import own_randomness
from prunekit_plugins.distill.result import Distillation, doubts
from prunekit_plugins.distill.settings import DistillSettings, Progress, check_one_process
from prunekit_plugins.distill.stored_logits import fingerprint_of
from prunekit_plugins.distill.stream import batches_of, check_labels, first_of, generator_of
from prunekit_plugins.distill.student.adapters import Adapted, wants_lora
from prunekit_plugins.distill.student.pair import check_pair, doubts_about_pair
from prunekit_plugins.distill.student.recomputing import recomputed
from prunekit_plugins.distill.student.regularized import regularizer_for
from prunekit_plugins.distill.student.trained import (
    ALL,
    gradients_kept,
    modes_kept,
    train_only,
    trained_parameters,
)


def distill(
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
    steps: int | None = None,
    epochs: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 1e-4,
    warm_up: float = 0.05,
    schedule: str = "cosine",
    accumulate: int = 1,
    clip: float | None = 1.0,
    precision: str | None = None,
    train: Any = ALL,
    freeze_batchnorm: bool = False,
    regularizer: Any = None,
    gradient_checkpointing: bool | Sequence[Layer] = False,
    held_out: Iterable[Any] | Batches | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Distillation:
    """Trains a pruned model, in place, to put out what the model did before it was pruned.

    The loss is a weighted sum of: ``"logits"``, the divergence ``T^2 KL(softmax(t / T) || softmax(s / T))`` from the
    teacher's logits (Hinton et al. 2015); ``"labels"``, the cross-entropy with labels, or a loss of your own; and
    ``"hidden"``, the mean squared error of hidden states relative to their size, where of the teacher's the units
    count that the plan has left. Positions that an ``attention_mask`` leaves out, and labels of -100, don't count.

    Args:
        student: The pruned model.
        teacher: The model before it was pruned (a copy of it: ``copy.deepcopy(model)``), on any device; it runs in
            eval mode and isn't changed. Or the folder that `store_logits` wrote.
        batches: Any iterable of model inputs, or `Batches` that say how they are read; see `calibrate`. An epoch is one
            pass over them.
        plan: The plan that led to the student, for ``"hidden"``.
        weights: Losses to their weights; None for ``{"logits": 1}``.
        temperature: ``T``.
        hidden: Modules of the teacher whose outputs are compared (modules, names or types); None for those that add
            branches up (residual blocks).
        loss_fn: The loss of labels, ``loss_fn(outputs, batch)``, a scalar. None: the ``loss`` that the model puts out
            itself, else the cross-entropy of logits and labels at the same positions.
        labels: Called with a batch; returns int64 labels. None: ``"labels"`` of a mapping.
        logits: Called with the outputs of either model; returns logits. None: the output called ``logits``, or the only
            one.
        class_dim: The dim of the logits that classes lie along; None for the last one of two or three.
        steps: Optimizer steps. None: as many as the epochs take.
        epochs: Passes over the batches; None for one, unless ``steps`` are given.
        optimizer: What trains the student. None: AdamW with ``lr``, and a weight decay of 0.01 on what has two dims
            or more.
        lr: The highest learning rate of that.
        warm_up: Part of the steps in which the rate rises from nothing.
        schedule: ``"cosine"``: the rate falls to nothing afterwards; ``"constant"``: it stays.
        accumulate: Batches whose gradients are averaged for one step.
        clip: Norm that gradients are clipped to; None for no clipping.
        precision: ``"bf16"`` runs both models under autocast; weights stay as they are.
        train: ``"all"``: the parameters that require gradients; ``"norms"``: biases, norms and scales (all of one dim);
            a list of patterns of names; a function of name and parameter; ``"lora"`` or a configuration of peft's:
            adapters, which are merged afterwards.
        freeze_batchnorm: Whether batch norms keep their statistics (and use them), instead of following the batches.
        regularizer: What shrinks weak units meanwhile, so that the next cut costs less: the name of a regularizer, a
            table ``{"name": "group_lasso", "reg": 1e-3}``, a function that makes one of a function that lists the
            groups, or a regularizer of the student. It adds to the gradients of every step, after clipping; one that
            grows does so whenever the held-out batches would be evaluated.
        gradient_checkpointing: Whether what the student computes is thrown away and computed again in the backward
            pass, which takes less memory and longer: True for the way of its own that a model of transformers has, or
            modules (names or types) that are computed again, each on its own. The result is the same.
        held_out: Batches that the student is evaluated on, by the same loss; the best state is kept, that before
            training included.
        evaluate_every: After so many steps; None for a tenth of them.
        patience: End after so many evaluations without a better one.
        checkpoint: A file to store the run in. If it is there, the run goes on from it, bit for bit as if it had never
            stopped.
        save_every: After so many steps.
        seed: Of the order of the batches, dropout, and all else that is random. Generators are put back afterwards.
        progress: Called after each step with the number of steps done and their total. None: a line with the time left
            on a terminal, nothing elsewhere.
        registry: Where rules are found; None for the default registry.

    Returns:
        What was done; print it.

    Raises:
        ArgumentError: An argument is wrong, there are no batches, the outputs don't match, a batch lacks what a loss
            needs, or no label counts; told before anything is changed.
        PlanError: The plan doesn't lead from the teacher to the student.
        CheckpointError: The checkpoint is damaged, or of another run.

    After an exception, Ctrl-C among them, the student is as it was, or as at its best evaluation since. A warning says
    before the first step where the teacher may not be the one that is meant: it has fewer parameters than the student,
    or isn't the model that the plan was made for.
    """
    settings = DistillSettings.of(dict(locals()))
    check_pair(student, teacher, plan)
    check_one_process(student)
    data = Data(
        batches_of(batches, "batches"),
        None if held_out is None else batches_of(held_out, "held_out"),
        _device_of(student),
        fingerprint_of(teacher) if settings.weights.keys() & {"logits", "hidden"} else "",
    )
    total = settings.total(data.training)
    with contextlib.ExitStack() as kept:
        kept.enter_context(exclusive(unwrap(student)))
        kept.enter_context(modes_kept(student, *([teacher] if isinstance(teacher, nn.Module) else [])))
        kept.enter_context(gradients_kept(student))
        kept.enter_context(own_randomness(_cards(student, teacher), generator_of(data.training)))
        wanted, freeze = settings.gradient_checkpointing, settings.freeze_batchnorm
        kept.enter_context(recomputed(student, wanted, freeze_batchnorm=freeze))
        run = _Run(student, teacher, data, settings, registry or default_registry())
        return run.made(total)


class _Run:
    """One distillation, from the first batch to the result."""

    def __init__(self, student: nn.Module, teacher: Any, data: Data, settings: DistillSettings, registry: Registry):
        self._student, self._teacher, self._data, self._settings = student, teacher, data, settings
        self._doubts = tuple(doubts_about_pair(student, teacher, settings.plan))
        self._notes = list(self._doubts)
        if isinstance(teacher, nn.Module) and teacher.training:
            self._notes.append("the teacher was in train mode; it ran in eval mode")
        self._first = first_of(data.training, "batches", data.device)
        if data.held_out is not None:
            first_of(data.held_out, "held_out", data.device)
        self._check_labels()
        self._states = hidden_states(teacher, settings, self._first, registry)
        self._regularizer = regularizer_for(student, settings.regularizer, self._first.example, registry)

    def _check_labels(self) -> None:
        settings, data = self._settings, self._data
        if "labels" not in settings.weights or settings.loss_fn is not None:
            return
        reader = Reader(labels=settings.labels)
        for name, batches in (("batches", data.training), ("held_out", data.held_out)):
            if batches is not None:
                check_labels(batches, name, reader)

    def made(self, total: int) -> Distillation:
        """Trains and returns what was done."""
        if not wants_lora(self._settings.train):
            return self._trained(total, self._settings.train)
        adapted = Adapted(self._student, self._settings.train)
        try:
            result = self._trained(total, ALL)
        except BaseException:
            adapted.leave()
            raise
        adapted.merge()
        return result

    def _trained(self, total: int, train: Any) -> Distillation:
        parameters = _owned(trained_parameters(self._student, train), self._settings.optimizer)
        train_only(self._student, parameters.values())
        objective = Objective.of(self._student, self._teacher, self._settings, self._states)
        with objective.at_work():
            self._student.eval()
            with torch.no_grad(), own_randomness(_cards(self._student)):
                objective.on(self._first)  # what doesn't match is told before anything is changed
            for doubt in self._doubts:
                warnings.warn(doubt, stacklevel=4)  # at the call of distill
            loop = Loop(self._student, objective, self._data, self._settings, parameters, total, self._regularizer)
            loop.run()
        journal = loop.journal
        losses = {name: tuple(values) for name, values in journal.losses.items()}
        evaluations = tuple(journal.held_out)
        return Distillation(
            self._student,
            journal.step,
            losses,
            evaluations,
            journal.best_step,
            journal.stopped,
            journal.diverged,
            (*self._notes, *doubts(losses, self._settings.weights, journal.best_step, held_out=bool(evaluations))),
        )


def _owned(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None) -> dict[str, nn.Parameter]:
    """Returns those parameters that an optimizer trains.

    Raises:
        ArgumentError: It trains none of them.
    """
    if optimizer is None:
        return dict(parameters)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: parameter for name, parameter in parameters.items() if id(parameter) in held}
    if not found:
        raise ArgumentError(
            "The optimizer trains no parameter of the student that is to be trained.",
            hint="make it for student.parameters(), after the cut; adapters need optimizer=None",
        )
    return found


def _device_of(model: nn.Module) -> torch.device | None:
    devices = {tensor.device for tensor in model.parameters()}
    return devices.pop() if len(devices) == 1 else None


def _cards(*models: Any) -> list[torch.device]:
    """Devices of some models that have random generators of their own."""
    modules = [model for model in models if isinstance(model, nn.Module)]
    return sorted({t.device for model in modules for t in model.parameters() if t.device.type == "cuda"}, key=str)

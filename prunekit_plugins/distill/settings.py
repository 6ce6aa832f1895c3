"""What a distillation was asked for: one value, made and checked once from the keywords of the call."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.arguments import fields_from, is_count, is_number, shown
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.modules.sharding import is_sharded, shards_its_parameters
from prunekit_core.plans.plan import Plan
from prunekit_plugins.calibration import Batches
from prunekit_plugins.distill.student.adapters import wants_lora

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each step."""
TERMS = ("logits", "labels", "hidden")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("bf16",)


def _check_weights(weights: Any) -> Mapping[str, float]:
    if weights is None:
        return {"logits": 1.0}
    if not isinstance(weights, Mapping) or not weights:
        raise ArgumentError(
            "weights maps losses to their weights.", why=f"got {shown(weights)}", hint='{"logits": 1, "hidden": 0.5}'
        )
    for name, weight in weights.items():
        if name not in TERMS:
            raise ArgumentError("There is no such loss.", where=repr(name), hint=nearest(str(name), TERMS))
        if not is_number(weight) or weight < 0:
            raise ArgumentError("The weight of a loss is a number of at least 0.", where=name, why=f"got {weight!r}")
    chosen = {name: float(weights[name]) for name in TERMS if weights.get(name)}
    if not chosen:
        raise ArgumentError("All losses have the weight 0.", hint='weights={"logits": 1}')
    return chosen


@attrs.frozen
class Course:
    """The factor on the learning rate at each step, a function of the step alone: there is no state to be stored.

    Attributes:
        total: Number of steps.
        warm_up: Part of them in which the factor rises to 1, in [0, 1).
        cosine: Whether it falls to 0 afterwards as half a cosine; else it stays.
    """

    total: int
    warm_up: float
    cosine: bool

    def factor(self, step: int) -> float:
        """Returns the factor.

        Args:
            step: How many steps are done.
        """
        warm = math.ceil(self.warm_up * self.total)
        if step < warm:
            return (step + 1) / warm
        if not self.cosine:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.total - warm)))


@attrs.frozen(eq=False)
class DistillSettings:
    """The keywords of `distill`; see there.

    Raises:
        ArgumentError: One is wrong.
    """

    plan: Plan | None = None
    weights: Mapping[str, float] = attrs.field(default=None, converter=_check_weights)
    temperature: float = 2.0
    hidden: Iterable[Any] | None = None
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None
    labels: Callable[[Any], torch.Tensor] | None = None
    logits: Callable[[Any], torch.Tensor] | None = None
    class_dim: int | None = None
    steps: int | None = None
    epochs: float | None = None
    optimizer: torch.optim.Optimizer | None = None
    lr: float = 1e-4
    warm_up: float = 0.05
    schedule: str = "cosine"
    accumulate: int = 1
    clip: float | None = 1.0
    precision: str | None = None
    train: Any = "all"
    freeze_batchnorm: bool = False
    regularizer: Any = None
    gradient_checkpointing: bool | Iterable[Any] = False
    held_out: Iterable[Any] | Batches | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint: str | os.PathLike[str] | None = None
    save_every: int = 100
    seed: int = 0
    progress: Progress | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DistillSettings:
        """Makes the settings from keywords, by name; raises `ArgumentError` where one is wrong."""
        return cls(**fields_from(cls, given))

    def __attrs_post_init__(self) -> None:
        self._check_course()
        self._check_numbers()
        self._check_choices()
        self._check_objects()

    def _check_course(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ArgumentError("Give steps or epochs, not both.")
        if self.patience is not None and self.held_out is None:
            raise ArgumentError("patience needs held-out batches.", hint="held_out=[...]")
        if self.evaluate_every is not None and self.held_out is None:
            raise ArgumentError("evaluate_every needs held-out batches.", hint="held_out=[...]")
        if "hidden" in self.weights and self.plan is None:
            raise ArgumentError(
                "Hidden states are matched by the plan.",
                why="there is none, and nothing else says which units of the teacher the student has",
                hint="plan=result.plan; pk.Plan() for models of the same shapes",
            )

    def _check_numbers(self) -> None:
        for name in ("steps", "accumulate", "evaluate_every", "patience", "save_every"):
            value = getattr(self, name)
            if value is not None and not is_count(value):
                raise ArgumentError(f"{name} must be a positive whole number.", why=f"got {value!r}")
        for name in ("temperature", "epochs", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ArgumentError(f"{name} must be a positive number.", why=f"got {value!r}")
        if not is_number(self.warm_up) or not 0 <= self.warm_up < 1:
            raise ArgumentError(
                "warm_up is a part of the steps, in [0, 1).", why=f"got {self.warm_up!r}", hint="0.05 for a twentieth"
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ArgumentError("seed must be a whole number.", why=f"got {self.seed!r}")

    def _check_choices(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ArgumentError(f"There is no {name} called {value!r}.", hint=nearest(str(value), known))

    def _check_objects(self) -> None:
        if self.plan is not None and not isinstance(self.plan, Plan):
            raise ArgumentError("plan is a Plan.", why=f"got {shown(self.plan)}", hint="result.plan")
        if self.optimizer is not None and not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ArgumentError(
                "optimizer is an optimizer.",
                why=f"got {shown(self.optimizer)}",
                hint="torch.optim.AdamW(student.parameters(), lr=1e-4)",
            )
        self._check_student()
        for name in ("loss_fn", "labels", "logits", "progress"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ArgumentError(f"{name} is a function.", why=f"got {shown(getattr(self, name))}")

    def _check_student(self) -> None:
        wanted = self.gradient_checkpointing
        if not isinstance(wanted, bool) and not isinstance(wanted, list | tuple | set):
            raise ArgumentError(
                "gradient_checkpointing is True, False, or a list of modules.",
                why=f"got {shown(wanted)}",
                hint='["blocks"] for the members of a ModuleList, each on its own',
            )
        if self.regularizer is not None and wants_lora(self.train):
            raise ArgumentError(
                "A regularizer shrinks weights, and adapters are trained.", hint="leave one of the two out"
            )

    def total(self, batches: Batches) -> int:
        """Returns the number of optimizer steps.

        Raises:
            ArgumentError: They are given in epochs, of a length that isn't known.
        """
        if self.steps is not None:
            return self.steps
        count = batches.count()
        if count is None:
            raise ArgumentError(
                "The number of steps isn't known.",
                why="the batches have no length, which says how long an epoch is",
                hint="steps=1000",
            )
        return max(1, math.ceil((self.epochs or 1) * count / self.accumulate))

    def course(self, total: int) -> Course:
        """Returns the learning rates over so many steps."""
        return Course(total, self.warm_up, self.schedule == "cosine")

    def interval(self, total: int) -> int:
        """Returns after how many steps held-out batches are evaluated: ten times in all, where that isn't said."""
        return self.evaluate_every or max(1, total // 10)


def check_one_process(student: nn.Module) -> None:
    """Raises `ArgumentError` for a student that lies on several processes, or whose wrapper averages over them."""
    wrapped = isinstance(student, nn.parallel.DistributedDataParallel) or shards_its_parameters(student)
    if wrapped or any(is_sharded(parameter) for parameter in student.parameters()):
        raise ArgumentError(
            "distill trains in one process only.",
            why="the best state and the end of the run would be decided on each process by its own batches",
            hint="DistillationLoss is the same loss for a loop of your own",
        )

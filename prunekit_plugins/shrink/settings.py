"""What `shrink` was asked for: one value, made and checked once from the keywords of the call."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.arguments import check_keywords, is_count, keywords_of, shown
from prunekit_core.choose.schedule import Schedule
from prunekit_core.errors import ArgumentError
from prunekit_core.plans.plan import Plan
from prunekit_plugins.budgets.budget import Target
from prunekit_plugins.calibration import Batches
from prunekit_plugins.checkpoints.provenance import describe
from prunekit_plugins.classic.pruner import BasePruner
from prunekit_plugins.distill import distill as distill_model
from prunekit_plugins.distill.settings import DistillSettings, Progress
from prunekit_plugins.distill.student.regularized import Regularizer
from prunekit_plugins.prune import prune as prune_model

OWN = (
    *("model", "example_inputs", "student", "teacher", "batches", "plan", "checkpoint", "options"),
    *("target", "calibration", "held_out", "progress", "registry", "seed"),
)
"""Arguments of `prune` and `distill` that `shrink` gives them itself."""
SAID = ("target", "calibration", "held_out", "progress", "registry", "seed")
"""Of these, the ones that are arguments of `shrink`."""
ONCE = (
    *("ratio", "pruning_ratio_dict", "branch_ratio", "branches", "head_pruning_ratio", "head_pruning_ratio_dict"),
    *("expert_pruning_ratio", "max_pruning_ratio", "pruning_ratio", "sensitivity", "weights", "optimizer"),
)
"""Arguments of `prune` about one cut of one model: they would count again at every step."""


@attrs.frozen(eq=False)
class ShrinkSettings:
    """The keywords of `shrink`; see there.

    Raises:
        ArgumentError: One is wrong.
    """

    target: Target
    steps: int | None = None
    schedule: Schedule | str = "exponential"
    prune: Mapping[str, Any] = attrs.field(factory=dict)
    distill: Mapping[str, Any] = attrs.field(factory=dict)
    folder: str | os.PathLike[str] | None = None
    seed: int = 0
    progress: Progress | None = None

    def __attrs_post_init__(self) -> None:
        if self.steps is not None and not is_count(self.steps):
            raise ArgumentError("steps must be a positive whole number.", why=f"got {self.steps!r}")
        self._check_passed("prune", self.prune, keywords_of(prune_model, BasePruner), ONCE)
        self._check_passed("distill", self.distill, keywords_of(distill_model), ())
        given = self.distill.get("optimizer")
        if given is not None and (isinstance(given, torch.optim.Optimizer) or not callable(given)):
            raise ArgumentError(
                "The optimizer of shrink is a function of parameters.",
                why=f"got {shown(given)}, and every step trains other parameters",
                hint='distill={"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01)}',
            )
        given = self.distill.get("regularizer")
        if isinstance(given, Regularizer) and not isinstance(given, type):
            raise ArgumentError(
                "The regularizer of shrink is a name, a table, or a function of groups.",
                why=f"got {shown(given)}, and every step trains other parameters",
                hint='distill={"regularizer": {"name": "group_lasso", "reg": 1e-3}}',
            )
        self.training()

    def _check_passed(self, name: str, given: Any, known: Sequence[str], once: Sequence[str]) -> None:
        if not isinstance(given, Mapping):
            raise ArgumentError(f"{name} holds arguments of {name} by their names.", why=f"got {shown(given)}")
        for keyword in given:
            if keyword in OWN:
                raise ArgumentError(
                    f"shrink gives {name} this argument itself.",
                    where=f"{name}={{{keyword!r}: ...}}",
                    hint=f"shrink(..., {keyword}=...)" if keyword in SAID else "leave it out",
                )
            if keyword in once or keyword.startswith("iterative_"):
                raise ArgumentError(
                    "This argument is about a single cut.",
                    where=f"{name}={{{keyword!r}: ...}}",
                    why="it would count again at every step",
                    hint="the target says how much goes; ignored_layers what stays",
                )
        check_keywords(given, known, name)

    def check_steps(self, steps: int) -> None:
        """Raises `ArgumentError` for what makes no sense in so many steps."""
        if steps == 1 and self.distill.get("regularizer") is not None:
            raise ArgumentError(
                "A regularizer prepares the next cut, and there is one cut only.",
                hint="steps=2; the training after the last cut goes without it",
            )

    def training(self, held_out: Batches | None = None) -> DistillSettings:
        """Returns the settings of the training, checked as far as they can be without a model."""
        given = {name: value for name, value in self.distill.items() if name != "optimizer"}
        held = held_out or Batches(())
        return DistillSettings.of({**given, "plan": Plan(), "held_out": held, "seed": self.seed})

    def request(self, model: str, steps: int, total: int) -> dict[str, Any]:
        """What has to be the same in a call that goes on in a folder, as plain data.

        Args:
            model: A fingerprint of the model.
            steps: Number of cuts.
            total: Optimizer steps in all.
        """
        own = {"target": self.target, "schedule": self.schedule, "prune": self.prune, "distill": self.distill}
        plain = {name: describe(value, {}) for name, value in own.items()}
        return {"model": model, **plain, "seed": self.seed, "steps": steps, "training_steps": total}


def shares(total: int, steps: int) -> list[int]:
    """Shares optimizer steps out among the cuts, as evenly as whole numbers can be.

    Raises:
        ArgumentError: There are more cuts.
    """
    if total < steps:
        raise ArgumentError(
            "There are fewer training steps than cuts.",
            why=f"{total} training steps in all, and {steps} cuts",
            hint='distill={"steps": 1000} or {"epochs": 10} says how long is trained in all; steps=1 cuts once',
        )
    ends = [math.floor(total * number / steps) for number in range(steps + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]

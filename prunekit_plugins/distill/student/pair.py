"""Whether a student and a teacher belong together, as far as their parameters and the plan say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, PlanError
from prunekit_core.plans.apply import Application
from prunekit_core.plans.plan import Plan
from prunekit_core.record.recorder import unwrap


def check_pair(student: Any, teacher: Any, plan: Plan | None = None) -> None:
    """Raises `ArgumentError` unless the two can be student and teacher.

    Args:
        student: A module, smaller than what the plan was made for.
        teacher: A module that shares no parameters with the student, or the path of stored logits.
        plan: The plan from the teacher to the student; None where it isn't known.
    """
    if not isinstance(student, nn.Module):
        raise ArgumentError("The student is a module.", why=f"got {shown(student)}")
    if plan is not None and plan.parameters and _misfit(plan, student) is None:
        raise ArgumentError(
            "The student is the model before the cut.",
            where=plan.parameters[0].parameter,
            why="everything that the plan cuts has the size from before the cut",
            hint="distill(student, teacher): the pruned model comes first",
        )
    if isinstance(teacher, str | os.PathLike):
        return
    if not isinstance(teacher, nn.Module):
        raise ArgumentError(
            "The teacher is a module, or the folder of stored logits.",
            why=f"got {shown(teacher)}",
            hint="copy.deepcopy(model) before the model is pruned",
        )
    own = {id(tensor): name for name, tensor in student.named_parameters()}
    both = [name for name, tensor in teacher.named_parameters() if id(tensor) in own]
    if both or teacher is student:
        raise ArgumentError(
            "The teacher shares parameters with the student.",
            where=", ".join(both[:3]),
            why="it would change while it teaches",
            hint="copy.deepcopy(model) before the model is pruned",
        )


def doubts_about_pair(student: nn.Module, teacher: Any, plan: Plan | None) -> Iterator[str]:
    """Says why a teacher may not be the one that is meant; see `check_pair` for the arguments."""
    if not isinstance(teacher, nn.Module):
        return
    own, others = (sum(tensor.numel() for tensor in model.parameters()) for model in (student, teacher))
    if own > others:
        yield (
            f"the student has more parameters than the teacher ({own:,} and {others:,}): are they swapped? "
            "distill(student, teacher) takes the pruned model first"
        )
    misfit = None if plan is None else _misfit(plan, teacher)
    if misfit is not None:
        yield f"the teacher is not the model that the plan was made for: {misfit.where}: {misfit.why}"


def _misfit(plan: Plan, model: nn.Module) -> PlanError | None:
    """Returns why a plan can't cut the parameters of a model; None where it can."""
    try:
        Application(plan, unwrap(model), None).check_parameters()
    except PlanError as error:
        return error
    return None

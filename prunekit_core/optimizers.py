"""The state of an optimizer: momentum and averages lose the same positions as the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunekit_core.edits import Decision, ParameterCut
from prunekit_core.errors import PlanError
from prunekit_core.surgery import select_positions


class OptimizerCut:
    """One cut of an optimizer's state; make it before the parameters are cut, perform it afterwards.

    A tensor of the state is understood where each of its dims is as long as the parameter's, or 1 (the factored
    averages of Adafactor). Single numbers (step counts) stay.

    Args:
        plan: What is cut.
        tensors: The model's parameters by canonical name.
        optimizer: Any optimizer of ``torch.optim``, or one that keeps its state in the same form.

    Raises:
        PlanError: The optimizer holds none of the parameters, or part of its state isn't understood.
    """

    def __init__(self, plan: Decision, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._plan = plan
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._found: list[tuple[ParameterCut, dict[str, Any], str]] = []
        if plan.parameters and not any(id(tensors[cut.parameter]) in held for cut in plan.parameters):
            raise PlanError(
                "The optimizer is not this model's.",
                where=type(optimizer).__name__,
                why="it holds none of the parameters that shrink",
                hint="pass the optimizer that trains this model, before parameters are exchanged",
            )
        for cut in plan.parameters:
            state = optimizer.state.get(tensors[cut.parameter], {})
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.numel() > 1:
                    self._check(cut, key, tuple(value.shape), optimizer)
                    self._found.append((cut, state, key))
                elif isinstance(value, list | tuple | dict):
                    self._check(cut, key, None, optimizer)

    def _check(
        self, cut: ParameterCut, key: str, shape: tuple[int, ...] | None, optimizer: torch.optim.Optimizer
    ) -> None:
        fits = shape is not None and len(shape) == len(cut.shape)
        if shape is None or not fits or any(n not in (1, m) for n, m in zip(shape, cut.shape, strict=True)):
            raise PlanError(
                "The state of the optimizer can't be cut.",
                where=f"{type(optimizer).__name__}, {key} of {cut.parameter}",
                why="it is no tensor" if shape is None else f"its shape {shape} is not the parameter's {cut.shape}",
                hint="prune without the optimizer, and make a new one afterwards",
            )

    def perform(self) -> None:
        """Cuts the state, in place."""
        positions = self._plan.all_positions(self._plan.parameters)
        with torch.no_grad():
            for cut, state, key in self._found:
                whole = state[key]
                dims = {d: kept for d, kept in positions[cut.parameter].items() if whole.shape[d] == cut.shape[d]}
                state[key] = select_positions(whole, dims)

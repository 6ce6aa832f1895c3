"""The state of optimizers: momentum and averages lose the same positions as the parameters that they belong to.

Parameters that are removed leave their optimizers, with their state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.errors import PlanError
from prunekit_core.modules.edits import Decision, ParameterCut
from prunekit_core.modules.surgery import select_positions
from prunekit_core.modules.transaction import Transaction

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
"""One optimizer, or several that train parts of one model."""


class OptimizerCut:
    """One cut of the state of optimizers; make it before the parameters are cut.

    A tensor of the state is understood where each of its dims is as long as the parameter's, or 1 (the factored
    averages of ``torch.optim.Adafactor``). Single numbers (step counts, on whatever device) stay. Optimizers inside of
    an optimizer (SAM, Lookahead, what ``accelerate`` returns) are cut as well.

    Args:
        plan: What is cut.
        tensors: The model's parameters by canonical name.
        optimizers: Any optimizer of ``torch.optim``, or one that keeps its state in the same form; or several.

    Raises:
        PlanError: No optimizer holds one of the parameters, or part of their state isn't understood.
    """

    def __init__(self, plan: Decision, tensors: Mapping[str, torch.Tensor], optimizers: Optimizers) -> None:
        self._plan = plan
        given = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
        found = {id(optimizer): optimizer for one in given for optimizer in _nested(one, set())}
        self._gone = {id(tensors[name]): name for name in plan.gone}
        names = {*(id(tensors[cut.parameter]) for cut in plan.parameters), *self._gone}
        held = {id(p) for optimizer in found.values() for group in optimizer.param_groups for p in group["params"]}
        self._found: list[tuple[ParameterCut, dict[str, Any], str]] = []
        if given and names and not names & held:
            raise PlanError(
                "The optimizer is not this model's.",
                where=", ".join(type(optimizer).__name__ for optimizer in given),
                why="it holds none of the parameters that shrink or go",
                hint="pass the optimizer that trains this model, before parameters are exchanged",
            )
        seen: set[int] = set()
        known = held | {id(tensor) for optimizer in found.values() for tensor in _tensors_in(optimizer.state)}
        self._optimizers = list(found.values())
        for optimizer in self._optimizers:
            if names:
                _check_elsewhere(optimizer, known)
                self._check_lists(optimizer)
            for cut in plan.parameters:
                state = optimizer.state.get(tensors[cut.parameter], {})
                if id(state) not in seen:  # a wrapper may show the state of what it wraps as its own
                    seen.add(id(state))
                    self._read(cut, state, optimizer)

    def _read(self, cut: ParameterCut, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                shape = tuple(value.shape)
                if len(shape) != len(cut.shape) or any(n not in (1, m) for n, m in zip(shape, cut.shape, strict=True)):
                    why = f"its shape {shape} is not the parameter's {cut.shape}"
                    raise _not_understood(optimizer, f"{key} of {cut.parameter}", why)
                self._found.append((cut, state, key))
            elif isinstance(value, list | tuple | dict):
                raise _not_understood(optimizer, f"{key} of {cut.parameter}", "it is no tensor")

    def prepare(self, transaction: Transaction, positions: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        """Makes the state that stays and hands it to a transaction.

        Args:
            transaction: What puts it in.
            positions: Per parameter that is cut, dim to the positions that stay.
        """
        for cut, state, key in self._found:
            whole = state[key]
            dims = {d: kept for d, kept in positions[cut.parameter].items() if whole.shape[d] == cut.shape[d]}
            transaction.entry(state, key, select_positions(whole, dims))
        if self._gone:
            self._leave(transaction)

    def _leave(self, transaction: Transaction) -> None:
        """Takes the parameters that go out of the lists of optimizers, with their state."""
        groups = {id(group["params"]): group for optimizer in self._optimizers for group in optimizer.param_groups}
        for group in groups.values():
            staying = [id(parameter) not in self._gone for parameter in group["params"]]
            for key in ("params", "param_names"):
                if key in group:
                    transaction.refill_list(group[key], [*itertools.compress(group[key], staying)])
        for state in {id(optimizer.state): optimizer.state for optimizer in self._optimizers}.values():
            left = {parameter: own for parameter, own in state.items() if id(parameter) not in self._gone}
            if len(left) < len(state):
                transaction.refill_table(state, left)

    def _check_lists(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises `PlanError` where an optimizer notes parameters that go in a place of its own."""
        lists = {id(group["params"]) for group in optimizer.param_groups}
        for attribute, value in vars(optimizer).items():
            if attribute not in ("param_groups", "state", "defaults") and id(value) not in lists:
                found = next((self._gone[id(t)] for t in _tensors_in(value) if id(t) in self._gone), None)
                if found is not None:
                    raise _not_understood(optimizer, attribute, f"it holds {found}, which is removed")


def _nested(optimizer: torch.optim.Optimizer, seen: set[int]) -> Iterator[torch.optim.Optimizer]:
    """Yields an optimizer and those that it holds in its attributes."""
    if id(optimizer) not in seen:
        seen.add(id(optimizer))
        yield optimizer
        for value in vars(optimizer).values():
            if isinstance(value, torch.optim.Optimizer):
                yield from _nested(value, seen)


def _check_elsewhere(optimizer: torch.optim.Optimizer, known: set[int]) -> None:
    """Raises `PlanError` where an optimizer keeps tensors that no parameter's state accounts for."""
    for name, value in vars(optimizer).items():
        if name not in ("param_groups", "state", "defaults"):
            for tensor in _tensors_in(value):
                if tensor.numel() > 1 and id(tensor) not in known:
                    raise _not_understood(optimizer, name, "it holds tensors, and which parameters' isn't known")
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor) and value.numel() > max(1, _size(parameter)):
                raise _not_understood(optimizer, key, "it is larger than the parameter that it is filed under")


def _size(parameter: Any) -> int:
    return parameter.numel() if isinstance(parameter, torch.Tensor) else 0


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def _not_understood(optimizer: torch.optim.Optimizer, what: str, why: str) -> PlanError:
    return PlanError(
        "The state of the optimizer can't be cut.",
        where=f"{type(optimizer).__name__}, {what}",
        why=why,
        hint="prune without the optimizer, and make a new one afterwards",
    )

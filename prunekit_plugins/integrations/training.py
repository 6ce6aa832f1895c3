"""Pruning in a training loop of one's own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from prunekit.plugin import ArgumentError, BasePruner, CheckpointError, Plan, PlanError
from prunekit_plugins.integrations.event import PruningEvent
from prunekit_plugins.regularizers import GrowingRegularizer

FORMAT = 1
_LOG = logging.getLogger("prunekit")

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class Regularizer(Protocol):
    """Adds to the gradients between ``loss.backward()`` and ``optimizer.step()``."""

    def regularize(self) -> None:
        """Adds to the gradients."""


@runtime_checkable
class SparsePruner(Protocol):
    """A pruner that brings a regularizer, such as `GroupNormPruner`."""

    regularizer: Regularizer


class TrainingPruner:
    """Prunes a model while it is trained: sparse training, cuts at given steps, and all that goes along with a cut.

    Call `regularize` between ``loss.backward()`` and ``optimizer.step()`` (after ``scaler.unscale_``, where gradients
    are scaled), and `after` when a step is done. Store `state_dict` in the checkpoints of the training; to resume, make
    everything as at the start, call `load_state_dict`, and only then load the weights, which have other shapes by then.

    Args:
        pruner: A pruner of the model that is trained; nothing was cut yet. If it brings a regularizer
            (`GroupNormPruner`, `GrowingRegPruner`, `BNScalePruner`), `regularize` uses that.
        at: After which training steps (or epochs, if these are what you count) to prune, ascending; as many as the
            pruner has ``iterative_steps``.
        optimizer: What trains the model: an optimizer or several, or a function that returns them; the state is cut
            along. None leaves stale state to you.
        copies: Copies of the model that are cut alike, such as ``torch.optim.swa_utils.AveragedModel``, or a function
            that returns them.
        regularizer: Regularizes instead of what the pruner brings; made for example as
            ``GroupLassoRegularizer(pruner.graph.get_all_groups)``.
        grow_every: Let a growing regularization grow after every so many calls of `regularize`.

    Attributes:
        events: What went, cut by cut, in this process.

    Raises:
        ArgumentError: An argument is wrong.
    """

    def __init__(
        self,
        pruner: BasePruner,
        at: Sequence[int],
        *,
        optimizer: Optimizers | Callable[[], Optimizers] | None = None,
        copies: Iterable[nn.Module] | Callable[[], Iterable[nn.Module]] = (),
        regularizer: Regularizer | None = None,
        grow_every: int | None = None,
    ) -> None:
        self.pruner = pruner
        self.at = _check_times(at, pruner)
        self._optimizer = optimizer
        self._copies = copies if callable(copies) else tuple(copies)
        if regularizer is None and isinstance(pruner, SparsePruner):
            regularizer = pruner.regularizer
        self.regularizer = regularizer
        self._grow_every = _check_growth(grow_every, regularizer)
        self._regularized = 0
        self.events: list[PruningEvent] = []

    @property
    def finished(self) -> bool:
        """Whether all cuts were made."""
        return self.pruner.current_step >= len(self.at)

    def regularize(self) -> None:
        """Adds what the regularizer adds to the gradients; nothing without a regularizer, or after the last cut.

        Raises:
            ArgumentError: No parameter has a gradient.
            PluginError: The regularizer raises.
        """
        if self.regularizer is None or self.finished:
            return
        blame = self.pruner.registry.owners.blame("prunekit_regularizers", self.regularizer)
        with blame.blamed("A regularizer failed."):
            self.regularizer.regularize()
        self._regularized += 1
        if self._grow_every and self._regularized % self._grow_every == 0:
            assert isinstance(self.regularizer, GrowingRegularizer)
            self.regularizer.grow()

    def after(self, done: int) -> list[PruningEvent]:
        """Makes the cuts that are due.

        Args:
            done: How many training steps (or epochs) are done.

        Returns:
            What went; empty if no cut was due.

        Raises:
            PrunekitError: A cut can't be made; the model, its copies and its optimizers are as they were before it.
        """
        made = []
        while not self.finished and self.at[self.pruner.current_step] <= done:
            before = self.pruner.graph.applied
            self.pruner.step(optimizer=self._optimizers(), copies=self._copied())
            step = self.pruner.current_step
            event = PruningEvent.of(done, step, len(self.at), before, self.pruner.graph.applied)
            _LOG.info("%s", event)
            made.append(event)
        self.events += made
        return made

    def _optimizers(self) -> Optimizers | None:
        return self._optimizer() if callable(self._optimizer) else self._optimizer

    def _copied(self) -> Iterable[nn.Module]:
        return self._copies() if callable(self._copies) else self._copies

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs, as plain data that JSON can hold; ``["plan"]`` is a plan as JSON."""
        growing = self.regularizer if isinstance(self.regularizer, GrowingRegularizer) and not self.finished else None
        return {
            "format": FORMAT,
            "plan": self.pruner.graph.applied.to_json(),
            "step": self.pruner.current_step,
            "at": list(self.at),
            "regularized": self._regularized,
            "coefficients": None if growing is None else growing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Brings a fresh model, its copies and its optimizers to the shapes that they had; load the weights next.

        Args:
            state: What `state_dict` returned.

        Raises:
            CheckpointError: The state is malformed, for another model, or for other past cuts; nothing was changed.
            ArgumentError: The model was pruned already.
        """
        plan = self._read(state)
        try:
            self.pruner.resume(plan, state["step"], optimizer=self._optimizers(), copies=self._copied())
        except PlanError as error:
            raise CheckpointError("The checkpoint is for another model.", where=error.where, why=error.why) from error
        self._regularized = state["regularized"]
        if state["coefficients"] is not None and isinstance(self.regularizer, GrowingRegularizer):
            self.regularizer.load_state_dict(state["coefficients"])

    def _read(self, state: Mapping[str, Any]) -> Plan:
        try:
            if state["format"] != FORMAT:
                raise ValueError(f'"format" is {state["format"]!r}, not {FORMAT}')
            plan, step, at = Plan.from_json(state["plan"]), int(state["step"]), list(state["at"])
            int(state["regularized"]), state["coefficients"]
        except (KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
            raise CheckpointError("The state of the pruning is malformed.", why=why) from error
        if at[:step] != list(self.at[:step]) or step > len(self.at):
            raise CheckpointError(
                "The checkpoint was made with other cuts.",
                why=f"it was pruned after {at[:step]}, and this training prunes after {list(self.at)}",
                hint="only cuts that are still to come may be changed",
            )
        return plan


def _check_times(at: Sequence[int], pruner: BasePruner) -> tuple[int, ...]:
    times = tuple(at)
    whole = all(isinstance(time, int) and not isinstance(time, bool) and time > 0 for time in times)
    if not times or not whole or any(b <= a for a, b in itertools.pairwise(times)):
        raise ArgumentError("The times to prune at must be ascending positive integers.", why=f"got {at!r}")
    if len(times) != pruner.iterative_steps:
        raise ArgumentError(
            "There must be as many times to prune at as the pruner has steps.",
            why=f"{len(times)} times, and iterative_steps={pruner.iterative_steps}",
        )
    if pruner.current_step or not pruner.graph.applied.empty:
        raise ArgumentError("This pruner has made steps already.", hint="start with a fresh model and pruner")
    return times


def _check_growth(grow_every: int | None, regularizer: Regularizer | None) -> int | None:
    if grow_every is None:
        return None
    if not isinstance(regularizer, GrowingRegularizer):
        raise ArgumentError("grow_every needs a growing regularization.", hint="use GrowingRegPruner")
    if not isinstance(grow_every, int) or isinstance(grow_every, bool) or grow_every < 1:
        raise ArgumentError("grow_every must be a positive integer.", why=f"got {grow_every!r}")
    return grow_every

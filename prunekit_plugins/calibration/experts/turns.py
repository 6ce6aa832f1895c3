"""Running a program with some experts out of the choice of tokens, and seeing what its mixtures put out.

A token is sent to ``k`` experts. In the ``r``-th run each token can't be sent to its own ``r``-th expert, in all
mixtures at once; what a mixture puts out is compared with what it puts out otherwise, and that is what the program goes
on with. So ``k`` runs show what each expert does to each of its tokens, however many experts there are, and whatever
the program does to run them.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.program.calls import bind_arguments, tensors_of
from prunekit_core.record.listener import Listener
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.experts.mixtures import Gates, Mixture, MixturesFound, Place, Scores
from prunekit_plugins.calibration.observation import Watched


class Turn(enum.Enum):
    """What is done in a run."""

    WHOLE = "whole"
    """Nothing: what mixtures put out is kept."""
    SILENT = "silent"
    """All weights of experts' outputs are zero."""
    ALONE = "alone"
    """All are zero but those of each token's expert number ``slot``."""
    WITHOUT = "without"
    """Each token can't be sent to its expert number ``slot``."""
    GONE = "gone"
    """No token can be sent to the experts of some units."""


@attrs.define(eq=False)
class SeenMixture:
    """A mixture in one batch.

    Attributes:
        chosen: Tensor ``[tokens, top_k]``, int64: the unit that each expert belongs to.
        numbers: The same of the experts.
        output: Tensor ``[tokens, features]``: what it puts out.
        counted: Tensor ``[tokens]``, bool: which tokens count: no mask leaves them out, and all that it puts out
            for them is finite.
        dropped: For how many tokens something isn't finite.
        silent: What it puts out with all weights at zero.
        alone: What each of a token's experts adds, weighted, by its place: tensors ``[tokens, features]``; empty where
            that isn't looked at.
        curvature: Tensor ``[features, features]``, or its diagonal ``[features]``; None where there are no gradients.
    """

    chosen: torch.Tensor
    numbers: torch.Tensor
    output: torch.Tensor
    counted: torch.Tensor
    dropped: int = 0
    silent: torch.Tensor | None = None
    alone: list[torch.Tensor] = attrs.field(factory=list)
    curvature: torch.Tensor | None = None

    def moves(self, change: torch.Tensor) -> torch.Tensor:
        """Returns ``e^T G e`` of changes ``[n, features]`` of what it puts out: tensor ``[n]``; zero without ``G``."""
        return (self.spread(change) * change).sum(1)

    def spread(self, change: torch.Tensor) -> torch.Tensor:
        """Returns ``G e`` of changes ``[n, features]``: tensor ``[n, features]``; zero without ``G``."""
        if self.curvature is None:
            return torch.zeros_like(change)
        curvature = self.curvature.to(change.dtype)
        return change @ curvature if curvature.dim() > 1 else change * curvature

    def fresh(self, slot: int) -> torch.Tensor:
        """Tells which tokens count and have no earlier expert of the same unit: tensor ``[tokens]``, bool."""
        own = self.chosen[:, slot : slot + 1]
        first = ~(self.chosen[:, :slot] == own).any(1)
        return first & self.counted


class MixtureListener(Listener):
    """The listener that takes experts out of the choice of tokens, and sees what mixtures put out.

    Args:
        watched: The model that runs.
        found: The mixtures of its program.
        mixtures: Those that are looked at.
        batch: The batch that runs.
        turn: What is done.
        known: Group to what the first run on this batch showed; empty in that run.
        slot: Which of each token's experts this is about.
        gradients: Whether the run has gradients.
        gone: Group to the units that no token can be sent to.

    Attributes:
        seen: Group to what the first run shows.
        units: Group to the units that tokens are sent to, where that is looked at: tensor ``[tokens, top_k]``, int64.
        outputs: Group to what its mixture put out in a later run: tensor ``[tokens, features]``.
        edges: Group to where the gradient of what its mixture put out arrives.
    """

    def __init__(
        self,
        watched: Watched,
        found: MixturesFound,
        mixtures: Sequence[Mixture],
        batch: Batch,
        turn: Turn,
        known: Mapping[str, SeenMixture],
        slot: int,
        *,
        gradients: bool = False,
        gone: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.seen: dict[str, SeenMixture] = {}
        self.units: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.edges: dict[str, Any] = {}
        self._stack, self._batch, self._turn, self._known, self._slot = watched.shadow.stack, batch, turn, known, slot
        self._gradients, self._expected, self._gone = gradients, found.counts, gone or {}
        self._ran: dict[tuple[str, Any], int] = {}
        self._numbers: dict[str, torch.Tensor] = {}
        self._before: dict[Place, list[Callable[[dict[str, Any]], None]]] = {}
        self._after: dict[Place, list[Callable[[Any], None]]] = {}
        self._keys: dict[tuple[str, Any], list[str]] = {}
        for mixture in mixtures:
            self._prepare(mixture)

    def _prepare(self, mixture: Mixture) -> None:
        if self._turn in (Turn.WITHOUT, Turn.GONE):
            for scores in mixture.scores:
                self._bar(mixture, scores)
        elif self._turn in (Turn.SILENT, Turn.ALONE) and mixture.gates is not None:
            self._weigh(mixture, mixture.gates)
        if self._turn in (Turn.WHOLE, Turn.GONE) and not self._gradients:
            for turn, one in enumerate(mixture.chosen):
                self._note_after(mixture, one.place, functools.partial(self._choose, mixture, turn))
        reader = mixture.gradient_reader if self._gradients else mixture.output_reader
        self._note_before(mixture, reader.place, lambda given: self._read(mixture, given, reader.argument))

    def _note_before(self, mixture: Mixture, place: Place, act: Callable[[dict[str, Any]], None]) -> None:
        self._before.setdefault(place, []).append(act)
        self._keys.setdefault((place.module, place.op), []).append(mixture.group)

    def _note_after(self, mixture: Mixture, place: Place, act: Callable[[Any], None]) -> None:
        self._after.setdefault(place, []).append(act)
        self._keys.setdefault((place.module, place.op), []).append(mixture.group)

    def compute(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs an operation, with what is to be changed before and after it."""
        key = (self._stack[-1] if self._stack else "", op)
        if key not in self._keys:
            return op(*args, **kwargs)
        number = self._ran[key] = self._ran.get(key, -1) + 1
        place = Place(*key, number)
        if place in self._before:
            given = bind_arguments(op, args, kwargs)
            for act in self._before[place]:
                act(given)
            args, kwargs = (), given
        result = op(*args, **kwargs)
        for change in self._after.get(place, ()):
            change(result)
        return result

    def finish(self) -> None:
        """Forgets mixtures whose operations ran another number of times than they were recorded."""
        for key, groups in self._keys.items():
            if key in self._expected and self._ran.get(key, -1) + 1 != self._expected[key]:
                for group in groups:
                    self.seen.pop(group, None)
                    self.outputs.pop(group, None)

    # -- what is changed

    def _bar(self, mixture: Mixture, scores: Scores) -> None:
        """Puts the scores of each token's unit, or those of units that are gone, at minus infinity."""
        units = self._known[mixture.group].chosen[:, self._slot]
        gone = scores.units[[*self._gone.get(mixture.group, ())]].any(0)

        def barred(tensor: torch.Tensor) -> torch.Tensor:
            if self._turn is Turn.GONE:
                rows = gone.to(tensor.device).expand(len(units), -1)
            else:
                rows = scores.units.to(tensor.device)[units.to(tensor.device)]  # [tokens, positions]
            moved = tensor.movedim(scores.dim, -1)
            each = math.prod(moved.shape[:-1]) // max(1, len(rows))
            mask = rows.repeat_interleave(each, 0).reshape(moved.shape).movedim(-1, scores.dim)
            return tensor.masked_fill(mask, -torch.inf)

        def before(arguments: dict[str, Any]) -> None:
            arguments[scores.argument] = barred(arguments[scores.argument])

        def after(result: Any) -> None:
            tensor = tensors_of(result)[scores.output]
            tensor.copy_(barred(tensor))

        if scores.argument:
            self._note_before(mixture, scores.place, before)
        else:
            self._note_after(mixture, scores.place, after)

    def _weigh(self, mixture: Mixture, gates: Gates) -> None:
        """Makes the weights of all experts zero, but for one of each token."""
        numbers = self._known[mixture.group].numbers

        def after(result: Any) -> None:
            tensor = tensors_of(result)[gates.output]
            stays = torch.zeros_like(tensor, dtype=torch.bool)
            if self._turn is Turn.ALONE and gates.dense:
                stays.reshape(-1, tensor.shape[-1]).scatter_(1, numbers[:, self._slot, None], True)
            elif self._turn is Turn.ALONE:
                stays.reshape(numbers.shape)[:, self._slot] = True
            tensor.mul_(stays)

        self._note_after(mixture, gates.place, after)

    # -- what is seen

    def _choose(self, mixture: Mixture, turn: int, result: Any) -> None:
        found = mixture.chosen[turn].numbers(result)
        earlier = self._numbers[mixture.group] if turn else found[:, :0]
        numbers = self._numbers[mixture.group] = torch.cat([earlier, found], 1)
        self.units[mixture.group] = mixture.unit_of.to(numbers.device)[numbers]

    def _read(self, mixture: Mixture, arguments: dict[str, Any], argument: str) -> None:
        """Takes what a mixture puts out; the program goes on with what it put out in the first run."""
        tensor = arguments[argument]
        if self._gradients:
            if tensor.requires_grad:
                self.edges[mixture.group] = torch.autograd.graph.get_gradient_edge(tensor)
            return
        rows = tensor.detach().reshape(-1, tensor.shape[-1]).clone()
        if mixture.group not in self._known:
            numbers = self._numbers.get(mixture.group)
            if numbers is not None and len(numbers) == len(rows):
                counted = self._batch.counted(tuple(tensor.shape[:-1]))
                finite = rows.isfinite().all(1)
                counted = finite if counted is None else finite & counted.flatten().to(rows.device)
                seen = SeenMixture(self.units[mixture.group], numbers, rows, counted, int((~finite).sum()))
                self.seen[mixture.group] = seen
            return
        self.outputs[mixture.group] = rows
        tensor.copy_(self._known[mixture.group].output.reshape(tensor.shape))

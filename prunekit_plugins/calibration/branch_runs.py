"""Calibration passes for branches: what gathers their scores is shown what they add, or what the model is without
them."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import torch

from prunekit_core.errors import ArgumentError, PrunekitError
from prunekit_core.graph.graph import Graph
from prunekit_core.program.outputs import named_outputs
from prunekit_core.record.recorder import check_recordable
from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.branch_replays import Replay, Tape
from prunekit_plugins.calibration.branch_sums import AddedBranch, SumListener, SumPlaces, recorded_position
from prunekit_plugins.calibration.observation import Loss, Watched, scalar_loss
from prunekit_plugins.calibration.rows.sums import picked_branches
from prunekit_plugins.checkpoints.stored_values import Cut


class BranchNeed(enum.Enum):
    """What a gatherer is shown of every batch."""

    SUMS = "sums"
    """What the branch adds, and to what. One forward pass shows it of all branches."""
    GRADIENTS = "gradients"
    """The same, with the derivatives of a loss. One forward and one backward pass for all branches."""
    OUTPUTS = "outputs"
    """The outputs of the model with the branch switched off, and those of the whole model. One forward pass for the
    whole model, and for each branch what comes behind it."""


@attrs.frozen(eq=False)
class SeenBranch:
    """A branch in one batch.

    Attributes:
        sums: What it adds: with `BranchNeed.SUMS` one place after the other, where it is added in several; with
            `BranchNeed.GRADIENTS` all of them; empty for `BranchNeed.OUTPUTS`.
        outputs: Key path of each output of real numbers to its values with the branch switched off, tensor
            ``[rows, features]``: vectors along the last dim; those that the batch's mask leaves out are not there.
        expected: The same of the whole model.
    """

    sums: tuple[AddedBranch, ...] = ()
    outputs: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    expected: Mapping[str, torch.Tensor] = attrs.field(factory=dict)


@runtime_checkable
class BranchGatherer(Protocol):
    """Gathers the score of one branch from calibration data.

    Attributes:
        needs: What it is shown.
    """

    @property
    def needs(self) -> BranchNeed:
        """What it is shown."""

    def add(self, seen: SeenBranch) -> None:
        """Takes one batch; tensors must not be kept nor changed."""

    def score(self) -> float | None:
        """Returns the score; None where nothing is known."""


class MeanOverRows:
    """Gathers the mean of a function over all rows of all sums: the score of most criteria for branches.

    Args:
        function: Called with each sum (`AddedBranch`); returns one number per row, or per example: a tensor of one
            dim.
        needs: What the sums have to hold.
    """

    def __init__(self, function: Callable[[AddedBranch], torch.Tensor], needs: BranchNeed = BranchNeed.SUMS) -> None:
        self.needs = needs
        self._function, self._sum, self._count = function, 0.0, 0

    def add(self, seen: SeenBranch) -> None:
        """Adds up what the function returns."""
        for one in seen.sums:
            values = self._function(one)
            self._sum += float(values.double().sum())
            self._count += values.numel()

    def score(self) -> float | None:
        """Returns the mean; None without rows."""
        return self._sum / self._count if self._count else None


class BranchRuns:
    """Runs a model on calibration batches, with some branches switched off.

    Args:
        graph: The analysed model, as it was at analysis. Weights on disk are read once for every run.
        batches: The batches.
        loss_fn: Loss for gradients; None for the outputs multiplied by random signs and added up, whose squared
            derivatives are, on average, by how much the outputs move.

    Raises:
        UnsupportedModelError: The model was sharded since it was analysed.
    """

    def __init__(self, graph: Graph, batches: Batches, loss_fn: Loss | None = None) -> None:
        self._batches, self._loss, stored = batches, loss_fn, graph.current.stored
        self._on_disk = stored is not None
        model = check_recordable(graph.model)
        self._watched = Watched(model, graph.registry, None if stored is None else Cut(stored, graph.applied))
        self._places = SumPlaces.of(graph.branch_analysis, graph.branches(), graph.registry.op_rules)
        self._recording = graph.branch_analysis.recordings[recorded_position(graph.branch_analysis)]

    @functools.cached_property
    def picked(self) -> frozenset[str]:
        """Names of branches that can't be told in a run: where they are added, other data add others."""
        batches = self._batches.read(self._watched.device) if self._recording.trace.decisions else ()
        return picked_branches(self._watched, self._places, batches, self._recording.example)

    def gather(self, gatherers: Mapping[str, BranchGatherer], off: Sequence[str] = ()) -> None:
        """Shows all batches to what gathers scores.

        Args:
            gatherers: Name of a branch to what gathers its score.
            off: Names of the branches that are switched off.

        Raises:
            ArgumentError: There are no batches, the forward raised on one, or runs another program on it.
        """
        by_need: dict[BranchNeed, dict[str, BranchGatherer]] = {}
        for name, gatherer in gatherers.items():
            by_need.setdefault(gatherer.needs, {})[name] = gatherer
        if self._on_disk and BranchNeed.GRADIENTS in by_need:
            raise ArgumentError(
                "Derivatives can't be gathered with the weights on disk.",
                why="a backward pass reads every weight once more, when its values are gone",
                hint="a criterion that runs forward only (block_influence, output_change), or the model in memory",
            )
        if BranchNeed.GRADIENTS in by_need and torch.is_inference_mode_enabled():
            raise ArgumentError(
                "Derivatives can't be gathered in inference mode.",
                why="torch.inference_mode() is on, and what is computed in it has no gradients",
                hint="leave torch.inference_mode() for this call; under torch.no_grad() it works",
            )
        if off and BranchNeed.GRADIENTS in by_need:
            raise ArgumentError(
                "Derivatives can't be gathered with branches switched off.",
                why="a backward pass goes through what the forward pass leaves out",
                hint="a criterion that needs gradients isn't greedy",
            )
        for number, batch in enumerate(self._batches.read(self._watched.device)):
            for need, wanted in by_need.items():
                match need:
                    case BranchNeed.SUMS:
                        self._show_sums(batch, wanted, off)
                    case BranchNeed.GRADIENTS:
                        self._show_gradients(batch, wanted, number)
                    case BranchNeed.OUTPUTS:
                        self._show_outputs(batch, wanted, off)

    def _show_sums(self, batch: Batch, wanted: Mapping[str, BranchGatherer], off: Sequence[str]) -> None:
        def show(name: str, added: AddedBranch) -> None:
            wanted[name].add(SeenBranch((added,)))

        self._run(batch, SumListener(self._watched.shadow, self._places, batch, off, wanted, show), off)

    def _show_gradients(self, batch: Batch, wanted: Mapping[str, BranchGatherer], number: int) -> None:
        shadow = self._watched.shadow
        listener = SumListener(shadow, self._places, batch, (), wanted, gradients=True)
        earlier, shadow.gradients = shadow.gradients, True
        try:
            with self._watched.differentiable(self._watched.parameters().values()):
                outputs = self._run(batch, listener)
                with torch.enable_grad():
                    loss = _projected(outputs, number) if self._loss is None else self._loss(outputs, batch.given)
                    loss = scalar_loss(loss, batch.where)
                seen = listener.gradients_of(loss, 1.0 if self._loss is None else float(batch.size))
        finally:
            shadow.gradients = earlier
        for name, sums in seen.items():
            wanted[name].add(SeenBranch(tuple(sums)))

    def _show_outputs(self, batch: Batch, wanted: Mapping[str, BranchGatherer], off: Sequence[str]) -> None:
        tape = Tape(self._watched, self._places, batch, {*off, *wanted})
        whole = self._run(batch, tape)
        expected = _rows_of(named_outputs(whole), batch)
        replay = Replay(tape, whole, self._watched.shadow.settings)
        able = [name for name in wanted if replay.can((*off, name))]
        others = ((name, None) for name in wanted if name not in able)
        for name, outputs in itertools.chain(replay.outputs(able, off), others):
            if outputs is None:
                outputs = named_outputs(self._without(batch, (*off, name)))
            wanted[name].add(SeenBranch(outputs=_rows_of(outputs, batch), expected=expected))

    def _without(self, batch: Batch, off: Sequence[str]) -> Any:
        return self._run(batch, SumListener(self._watched.shadow, self._places, batch, off), off)

    def _run(self, batch: Batch, listener: SumListener, off: Sequence[str] = ()) -> Any:
        try:
            outputs = self._watched.run_into(batch, listener)
        except ArgumentError as error:
            if isinstance(error.__cause__, PrunekitError):  # a gatherer's, not the model's
                raise error.__cause__ from error.__cause__.__cause__
            raise
        listener.finish()
        if not off:
            _check_numbers(outputs, batch)
        return outputs


def rows_of(outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Returns the vectors that a model returns for a batch, as `SeenBranch.outputs` holds them.

    Args:
        outputs: What the model returned.
        batch: The batch.

    Returns:
        Key path of each output of real numbers to a tensor ``[rows, features]``.
    """
    return _rows_of(named_outputs(outputs), batch)


def _rows_of(outputs: Iterable[tuple[str, torch.Tensor]], batch: Batch) -> dict[str, torch.Tensor]:
    return {
        name: _output_rows(tensor, batch) for name, tensor in outputs if tensor.is_floating_point() and tensor.numel()
    }


def _check_numbers(outputs: Any, batch: Batch) -> None:
    """Raises `ArgumentError` where the whole model returns NaN: no score would mean anything."""
    for name, rows in rows_of(outputs, batch).items():
        if bool(rows.isnan().any()):
            raise ArgumentError(
                "The model returns NaN on calibration data.",
                where=batch.where,
                why=f"in the output {name}" if name else "in its output",
                hint="the model overflows, or the data hold NaN: look at its outputs on one batch",
            )


def _output_rows(tensor: torch.Tensor, batch: Batch) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.dim() < 2:
        return tensor.reshape(1, -1)
    counted = batch.counted(tuple(tensor.shape[:-1]))
    return tensor.reshape(-1, tensor.shape[-1]) if counted is None else tensor[counted]


def _projected(outputs: Any, seed: int) -> torch.Tensor:
    """Multiplies all outputs of real numbers by random signs and adds them up."""
    generator = torch.Generator().manual_seed(seed)
    found = [tensor for _, tensor in named_outputs(outputs) if tensor.is_floating_point() and tensor.requires_grad]
    if not found:
        raise ArgumentError("The outputs don't depend on the parameters.", why="no gradient arrives at a branch")
    return torch.stack([(tensor * _signs(tensor, generator)).sum() for tensor in found]).sum()


def _signs(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(2, tensor.shape, generator=generator, device="cpu")
    return (drawn * 2 - 1).to(tensor)

"""How far a cut copy of a model is from the model: what both return for data that decided nothing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.graph.graph import Graph
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.plan import Plan
from prunekit_core.record.listener import Listener
from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.branch_runs import SeenBranch, rows_of
from prunekit_plugins.calibration.observation import Values, Watched
from prunekit_plugins.checkpoints.stored_values import Cut
from prunekit_plugins.importance.output_change import OutputChange
from prunekit_plugins.measure import evaluating
from prunekit_plugins.prune.calibrated import CalibratedPath

Run = Callable[[Batch], Any]
"""Runs a model on a batch, and returns its outputs."""


@attrs.frozen(eq=False)
class Version:
    """A model, or a cut copy of it, with the place where its values are.

    Attributes:
        model: The module.
        values: Where the values of tensors on the meta device are read from; None where all are in memory.
    """

    model: nn.Module
    values: Values | None = None


class Judge:
    """Compares what copies of a model return with what the model returns.

    Weights on disk are read once for every batch.

    Args:
        graph: The analysed model, from which nothing was cut.
        batches: What both are run on.
    """

    def __init__(self, graph: Graph, batches: Batches) -> None:
        stored = graph.current.stored
        self._whole = Version(graph.model, None if stored is None else Cut(stored, Plan()))
        self._registry, self._batches = graph.registry, batches

    def change(self, small: Version) -> float:
        """Returns the divergence of the logits in nats, or else the squared error relative to the outputs' squares.

        Raises:
            ArgumentError: The model returns no real numbers to compare.
        """
        seen = OutputChange("auto")
        with self._running(small) as (device, runs):
            for batch in self._batches.read(device):
                expected, found = (rows_of(run(batch), batch) for run in runs)
                alike = {name for name, rows in expected.items() if name in found and found[name].shape == rows.shape}
                seen.add(
                    SeenBranch(
                        outputs={name: rows for name, rows in found.items() if name in alike},
                        expected={name: rows for name, rows in expected.items() if name in alike},
                    )
                )
        change = seen.score()
        if change is None:
            raise ArgumentError("The model has no floating-point outputs to compare.")
        return change

    @contextlib.contextmanager
    def _running(self, small: Version) -> Iterator[tuple[torch.device | None, list[Run]]]:
        """Gives what runs the model and a copy in eval mode, and the device for batches; None where there are several.

        Args:
            small: The copy.
        """
        versions = (self._whole, small)
        if self._whole.values is not None:
            watched = [Watched(one.model, self._registry, one.values) for one in versions]
            yield watched[0].device, [_watched_run(one) for one in watched]
            return
        devices = {parameter.device for parameter in self._whole.model.parameters()}
        with evaluating([one.model for one in versions]):
            yield devices.pop() if len(devices) == 1 else None, [_plain_run(one.model) for one in versions]


def _plain_run(model: nn.Module) -> Run:
    return lambda batch: batch.example.runner(model, batch.example.args, batch.example.kwargs)


def _watched_run(watched: Watched) -> Run:
    return lambda batch: watched.run_into(batch, Listener())


def cut_copy(pruner: Pruner, plan: Plan, path: CalibratedPath, stages: int | None) -> Version:
    """Returns a copy of a pruner's model as it will be: cut, and compensated in a number of stages.

    The copy of a model whose weights are on disk has none either: it reads what stays of them, and what was repaired
    from temporary files.
    """
    graph, small = pruner.graph, copy.deepcopy(pruner.graph.model)
    stored = graph.current.stored
    repaired = attrs.evolve(path, stages=stages).repair(graph, plan)
    values = {} if repaired is None else repaired.values
    with Transaction() as transaction:
        graph.step_to(plan).apply_within(
            transaction, small, registry=graph.registry, values=values if stored is None else {}
        )
    return Version(small, None if stored is None else Cut(stored, plan, values))

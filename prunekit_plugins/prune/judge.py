"""How far a cut copy of a model is from the model: what both return for data that decided nothing."""

from __future__ import annotations

import copy

import attrs
from torch import nn

from prunekit_core.choose.pruner import Pruner
from prunekit_core.errors import ArgumentError
from prunekit_core.modules.transaction import Transaction
from prunekit_core.plans.plan import Plan
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.branch_runs import SeenBranch, rows_of
from prunekit_plugins.importance.output_change import OutputChange
from prunekit_plugins.measure import evaluating
from prunekit_plugins.prune.calibrated import CalibratedPath


class Judge:
    """Compares what copies of a model return with what the model returns.

    Args:
        model: The model.
        batches: What both are run on.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self._model, self._batches = model, batches
        devices = {parameter.device for parameter in model.parameters()}
        self._device = devices.pop() if len(devices) == 1 else None

    def change(self, small: nn.Module) -> float:
        """Returns the divergence of the logits in nats, or else the squared error relative to the outputs' squares.

        Raises:
            ArgumentError: The model returns no real numbers to compare.
        """
        seen = OutputChange("auto")
        with evaluating([self._model, small]):
            for batch in self._batches.read(self._device):
                run, args, kwargs = batch.example.runner, batch.example.args, batch.example.kwargs
                expected, found = (rows_of(run(model, args, kwargs), batch) for model in (self._model, small))
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


def cut_copy(pruner: Pruner, plan: Plan, path: CalibratedPath, stages: int | None) -> nn.Module:
    """Returns a copy of a pruner's model as it will be: cut, and compensated in a number of stages."""
    graph, small = pruner.graph, copy.deepcopy(pruner.graph.model)
    repaired = attrs.evolve(path, stages=stages).repair(graph, plan)
    values = {} if repaired is None else repaired.values
    with Transaction() as transaction:
        graph.step_to(plan).apply_within(transaction, small, registry=graph.registry, values=values)
    return small

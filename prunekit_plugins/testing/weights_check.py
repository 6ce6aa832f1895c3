"""Proving a form of weights on disk: what is read is what was written, whole and as a plan cuts it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.failure import failing, require
from prunekit_plugins.testing.network import small_net


@runtime_checkable
class Weights(Protocol):
    """What is asked of weights on disk; `prunekit_weights` says it in full."""

    def __contains__(self, name: str) -> bool:
        """Tells whether a tensor is there."""

    def dtype(self, name: str) -> torch.dtype:
        """Returns its dtype."""

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names that it has there."""

    def read(self, name: str, plan: Plan) -> torch.Tensor:
        """Reads it as a plan cuts it."""


def check_weights(
    open_weights: Callable[..., Any],
    write: Callable[[Path, Mapping[str, torch.Tensor]], Any],
    *,
    suffix: str = "weights",
    registry: Registry | None = None,
) -> None:
    """Proves a form of weights on disk on a small network.

    The weights are written, opened for a model on the meta device, and must hold every parameter and buffer with its
    dtype, and none that the model doesn't have. What is read must have the values that were written, on the CPU and in
    memory of its own; after a plan, those of the network that the plan was applied to. The model must stay on the meta
    device.

    Args:
        open_weights: What is registered: ``(path, model) -> weights``.
        write: Writes a state dict to a path in this form.
        suffix: The suffix of the file, without the dot.
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or a function raises.
    """
    require(callable(open_weights), "check_weights", "a function (path, model) -> weights", open_weights)
    require(callable(write), "check_weights", "a function that writes a state dict to a path", write)
    net, batch = small_net()
    pruned = copy.deepcopy(net)
    graph = Graph.of(pruned, batch, registry=registry)
    plan = graph.remove({group.name: list(range(0, group.size, 2)) for group in graph.groups()})
    model = copy.deepcopy(net).to("meta")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net.{suffix}"
        with failing("writing the weights", write):
            write(path, net.state_dict())
        with failing("opening the weights", open_weights):
            weights = open_weights(path, model)
        assert isinstance(weights, Weights), (
            f"weights answer `name in weights`, dtype, names and read; {type(weights).__name__} doesn't"
        )
        with failing("reading the weights", open_weights):
            assert "no.such.tensor" not in weights, "the weights say that they hold a tensor that isn't there"
            for name, tensor in net.state_dict().items():
                _check_tensor(weights, name, tensor, Plan())
            for name, tensor in pruned.state_dict().items():
                _check_tensor(weights, name, tensor, plan)
    assert all(parameter.is_meta for parameter in model.parameters()), "the model is no longer on the meta device"


def _check_tensor(weights: Weights, name: str, expected: torch.Tensor, plan: Plan) -> None:
    assert name in weights, f"the weights hold no {name}"
    assert weights.dtype(name) is expected.dtype, f"{name}: dtype says {weights.dtype(name)}, written: {expected.dtype}"
    assert weights.names(name), f"{name}: names says that it has none"
    found: Any = weights.read(name, plan)
    assert isinstance(found, torch.Tensor), f"{name}: read returns {type(found).__name__}, not a tensor"
    what = "as a plan cuts it, " if plan.parameters else ""
    assert found.shape == expected.shape, (
        f"{name}: {what}shape {tuple(found.shape)} is read, not {tuple(expected.shape)}"
    )
    assert found.dtype == expected.dtype, f"{name}: {found.dtype} is read, not {expected.dtype}"
    assert found.device.type == "cpu", f"{name}: it is read to {found.device}, not to the CPU"
    assert torch.equal(found, expected), f"{name}: {what}other values are read than were written"
    found.zero_()
    assert torch.equal(weights.read(name, plan), expected), (
        f"{name}: what is read has no memory of its own: changing it changes what is read next"
    )

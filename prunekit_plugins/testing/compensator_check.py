"""Proving a compensator: a pruned network is no worse with it, keeps its shapes, and nothing else changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.compensation.run import Compensation, compensate
from prunekit_plugins.testing.failure import failing, made, require
from prunekit_plugins.testing.network import chosen_net, random_batches


def check_compensator(
    make: Callable[[], Any],
    *,
    model: nn.Module | None = None,
    example: torch.Tensor | None = None,
    registry: Registry | None = None,
) -> None:
    """Proves a compensator on a small network, half of whose units were removed.

    It must do something or say why not, leave the error of the network's outputs on the calibration data no larger
    than it was, keep every shape and dtype, give finite values, do the same when made anew, and change nothing in the
    original. The plan must still fit it.

    Args:
        make: Makes the compensator.
        model: A network that the compensator has something to do in; a small one of the kit if None.
        example: A batch for it.
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the compensator raises.
        PluginError: It gives values of another shape, or for a tensor that there isn't.
    """
    compensator = made(make, "check_compensator", "compensator")
    require(callable(compensator), "check_compensator", "what makes a compensator, a callable on a Repair", compensator)
    original, batch = chosen_net(model, example)
    original.eval()
    batches = random_batches(batch, 10, seed=1)
    pruned = copy.deepcopy(original)
    graph = Graph.of(pruned, batch, registry=registry)
    plan = graph.remove({group.name: list(range(1, group.size, 2)) for group in graph.groups()})
    before = _state(original)
    (first, result), (second, _) = (_compensated(pruned, original, plan, batches, make, registry) for _ in range(2))
    assert not result.undone, "; ".join(result.undone.values())
    assert not result.unsolved, f"{', '.join(result.unsolved)}: the compensator gives values that are not finite"
    for name, tensor in _state(original).items():
        assert torch.equal(tensor, before[name]), f"{name}: the compensator changes the original"
    cut = _state(pruned)
    changed = any(not torch.equal(tensor, cut[name]) for name, tensor in first.items())
    assert changed or result.left, "the compensator changes nothing and doesn't say why (repair.left)"
    for name, tensor in first.items():
        assert tensor.shape == cut[name].shape, (
            f"{name}: the compensator leaves shape {tuple(tensor.shape)}, the cut left {tuple(cut[name].shape)}"
        )
        assert tensor.dtype == cut[name].dtype, f"{name}: the compensator leaves {tensor.dtype}, not {cut[name].dtype}"
        assert bool(tensor.isfinite().all()), f"{name}: the compensator leaves values that are not finite"
        assert torch.equal(tensor, second[name]), f"{name}: made anew, the compensator leaves other values"
    worse, better = result.output_error
    assert math.isfinite(better), f"the error of the outputs is {better}"
    assert better <= worse * (1 + 1e-9), f"the error of the outputs grows from {worse:.6g} to {better:.6g}"


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _compensated(
    pruned: nn.Module,
    original: nn.Module,
    plan: Plan,
    batches: list[torch.Tensor],
    make: Callable[[], Any],
    registry: Registry | None,
) -> tuple[dict[str, torch.Tensor], Compensation]:
    model = copy.deepcopy(pruned)
    compensator = make()
    with failing("the compensator", compensator):
        result = compensate(model, plan, batches, original=original, methods=[compensator], registry=registry)
    return _state(model), result

"""Proving a pruner: nothing happens before a step, steps shrink the model, and their history repeats them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from prunekit_core.check.exactness import check_exact
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.failure import failing, made
from prunekit_plugins.testing.network import small_net
from prunekit_plugins.testing.state import State

RATIO, STEPS = 0.5, 2


@runtime_checkable
class Steps(Protocol):
    """What is asked of a pruner here."""

    def step(self) -> Any:
        """Removes the units of one step."""

    def pruning_history(self) -> Any:
        """Lists what was removed."""

    def load_pruning_history(self, history: Any) -> Plan:
        """Removes what a history lists."""


def check_pruner(make: Callable[..., Any], *, registry: Registry | None = None) -> None:
    """Proves a pruner on a small network.

    It is made as ``make(model, example_inputs, pruning_ratio=0.5, iterative_steps=2, registry=registry)``. That must
    change nothing in the model. The two steps must remove units, leave a model with outputs of the same shape that
    computes what the original with these units zeroed computes, take no more than the ratio of any group, and be the
    same when the pruner is made anew. The history must make the same model of another copy, and ``ignored_layers`` must
    keep their outputs.

    Args:
        make: The class.
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the pruner raises.
        PrunekitError: The pruner raises one.
    """
    original, batch = small_net()
    original.eval()
    model = copy.deepcopy(original)
    pruner = _made(make, model, batch, registry)
    shape = tuple(model(batch).shape)
    for number in range(1, STEPS + 1):
        _step(pruner, f"step {number}")
        with failing(f"after step {number} the model", model), torch.no_grad():
            found = tuple(model.eval()(batch).shape)
        assert found == shape, f"after step {number} the outputs have shape {found}, not {shape}"
    assert _count(model) < _count(original), f"{STEPS} steps remove nothing"
    repeated = copy.deepcopy(original)
    again = _made(make, repeated, batch, registry)
    with failing("load_pruning_history()", again):
        plan = again.load_pruning_history(pruner.pruning_history())
    assert isinstance(plan, Plan), f"load_pruning_history() returns {type(plan).__name__}, not a Plan"
    _check_same(model, repeated, "the history leads to another model")
    _check_kept(original, batch, plan, registry)
    result = check_exact(original, model, plan, batch, registry=registry)
    assert result, f"the pruned model isn't the original with these units zeroed: {result}"
    _check_again(make, original, model, batch, registry)
    _check_ignored(make, original, batch, registry)


def _made(
    make: Callable[..., Any], model: nn.Module, batch: torch.Tensor, registry: Registry | None, **options: Any
) -> Steps:
    """Makes a pruner, which must leave the model as it is."""
    before = State.of(model)
    options = {"pruning_ratio": RATIO, "iterative_steps": STEPS, "registry": registry, **options}
    pruner = made(make, "check_pruner", "pruner", model, batch, **options)
    assert isinstance(pruner, Steps), (
        "a pruner has step(), pruning_history() and load_pruning_history(), as BasePruner; "
        f"{type(pruner).__name__} hasn't"
    )
    changed = before.changed(model)
    assert not changed, f"making the pruner changes {changed}: the model must not be touched before step()"
    return pruner


def _step(pruner: Steps, what: str) -> None:
    with failing(f"{what}: step()", pruner):
        pruner.step()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_same(one: nn.Module, other: nn.Module, words: str) -> None:
    for name, tensor in one.state_dict().items():
        found = other.state_dict()[name]
        assert tensor.shape == found.shape, f"{words}: {name} has shape {tuple(found.shape)}, not {tuple(tensor.shape)}"
        assert torch.equal(tensor, found), f"{words}: {name} has other values"


def _check_kept(original: nn.Module, batch: torch.Tensor, plan: Plan, registry: Registry | None) -> None:
    sizes = {group.name: group.size for group in Graph.of(original, batch, registry=registry).groups()}
    for name, kept in plan.kept.items():
        assert len(kept) >= int(sizes[name] * (1 - RATIO)), (
            f"{name}: {len(kept)} of {sizes[name]} units stay, which is less than a ratio of {RATIO} leaves"
        )


def _check_again(
    make: Callable[..., Any], original: nn.Module, model: nn.Module, batch: torch.Tensor, registry: Registry | None
) -> None:
    copied = copy.deepcopy(original)
    pruner = _made(make, copied, batch, registry)
    for number in range(1, STEPS + 1):
        _step(pruner, f"made anew, step {number}")
    _check_same(model, copied, "made anew, the pruner makes another model")


def _check_ignored(
    make: Callable[..., Any], original: nn.Module, batch: torch.Tensor, registry: Registry | None
) -> None:
    model = copy.deepcopy(original)
    pruner = _made(make, model, batch, registry, ignored_layers=[model.get_submodule("hidden")])
    _step(pruner, "with ignored_layers")
    found, whole = (m.get_parameter("hidden.weight").shape[0] for m in (model, original))
    assert found == whole, f"ignored_layers=[hidden], but {whole - found} of its {whole} outputs are gone"

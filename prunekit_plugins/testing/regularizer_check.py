"""Proving a regularizer: it adds to gradients, changes nothing else, and follows when units leave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from prunekit_core.graph.graph import Graph
from prunekit_core.graph.group import Group
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.failure import failing, made
from prunekit_plugins.testing.network import chosen_net


@runtime_checkable
class Regularizer(Protocol):
    """What a regularizer can do."""

    def regularize(self) -> None:
        """Adds to the gradients."""

    def refresh(self) -> None:
        """Looks at the groups once more, after units were removed."""


MakeRegularizer = Callable[[Callable[[], Iterable[Group]]], Any]


def check_regularizer(
    make: MakeRegularizer,
    *,
    model: nn.Module | None = None,
    example: torch.Tensor | None = None,
    registry: Registry | None = None,
) -> None:
    """Proves a regularizer on a small network.

    ``regularize()`` must change gradients and keep their shapes, dtypes and finiteness, change no weight, buffer or
    mode, give no gradient to parameters that are frozen, do the same when made anew, stay finite when all weights are
    zero or equal, and go on after units were removed and ``refresh()`` was called.

    Args:
        make: Makes the regularizer from a function that lists the groups as they are now, such as the registered class.
        model: The network, for regularizers of layers of one's own; it is not touched. None for one of convolutions,
            linear layers and norms.
        example: What the model is called with; goes with ``model``.
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the regularizer raises.
    """
    net, batch = chosen_net(model, example)
    first, second = (_one_step(copy.deepcopy(net), batch, make, registry) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), f"{name}: made anew, the regularizer adds something else"
    plain = _gradients(net, batch)
    assert any(not torch.equal(first[name], plain[name]) for name in plain), "the regularizer changes no gradient"
    for constant in (0.0, 1.0):
        even = copy.deepcopy(net)
        for parameter in even.parameters():
            nn.init.constant_(parameter, constant)
        _one_step(even, batch, make, registry)
    frozen = copy.deepcopy(net)
    next(iter(frozen.parameters())).requires_grad_(False)
    _one_step(frozen, batch, make, registry)
    _check_refresh(copy.deepcopy(net), batch, make, registry)


def _gradients(net: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(net)
    model.eval()(batch).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _one_step(
    model: nn.Module, batch: torch.Tensor, make: MakeRegularizer, registry: Registry | None
) -> dict[str, torch.Tensor]:
    """Regularizes once and returns the gradients, having looked at everything that must stay."""
    graph = Graph.of(model, batch, registry=registry)
    regularizer = _made(make, graph)
    return _regularized(model, batch, regularizer)


def _made(make: MakeRegularizer, graph: Graph) -> Regularizer:
    regularizer = made(make, "check_regularizer", "regularizer", graph.get_all_groups)
    assert isinstance(regularizer, Regularizer), (
        f"a regularizer has regularize() and refresh(); {type(regularizer).__name__} hasn't"
    )
    return regularizer


def _regularized(model: nn.Module, batch: torch.Tensor, regularizer: Regularizer) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.eval()(batch).square().sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {name: p.grad for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with failing("regularize()", regularizer):
        regularizer.regularize()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name}: regularize() changes the weight itself, not its gradient"
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == flags[name], f"{name}: regularize() changes requires_grad"
        gradient = parameter.grad
        if given[name] is None:
            assert gradient is None or flags[name], f"{name}: regularize() gives a frozen parameter a gradient"
        else:
            assert gradient is not None, f"{name}: regularize() takes the gradient away"
        if gradient is None:
            continue
        assert gradient.shape == parameter.shape, (
            f"{name}: the gradient has shape {tuple(gradient.shape)}, the parameter {tuple(parameter.shape)}"
        )
        assert gradient.dtype == parameter.dtype, f"{name}: the gradient is {gradient.dtype}, not {parameter.dtype}"
        assert bool(gradient.isfinite().all()), f"{name}: the gradient is not finite"
        found[name] = gradient.clone()
    return found


def _check_refresh(model: nn.Module, batch: torch.Tensor, make: MakeRegularizer, registry: Registry | None) -> None:
    graph = Graph.of(model, batch, registry=registry)
    regularizer = _made(make, graph)
    _regularized(model, batch, regularizer)
    graph.remove({group.name: [0] for group in graph.groups()})
    with failing("refresh()", regularizer):
        regularizer.refresh()
    before = _gradients(model, batch)
    after = _regularized(model, batch, regularizer)
    assert any(not torch.equal(after[name], before[name]) for name in before), (
        "once units were removed and refresh() was called, the regularizer changes no gradient"
    )

"""The kit for regularizers, cost models, schedules and opaque layers is shown to fail on what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_compensator, check_cost, check_layer_type, check_regularizer, check_schedule
from tests.core.test_opaque import FOREIGN, Foreign, foreign_fake, foreign_rule, registry_of


class Decay:
    """Right: adds a fraction of each weight to its gradient."""

    def __init__(self, groups: Callable[[], Iterable[pk.Group]]) -> None:
        self.groups = groups
        self.refresh()

    def refresh(self) -> None:
        self.tensors = {id(view.tensor): view.tensor for group in self.groups() for view in group.views()}

    def regularize(self) -> None:
        for tensor in self.tensors.values():
            if tensor.grad is not None:
                tensor.grad.add_(self.term(tensor.detach()))

    def term(self, weight: torch.Tensor) -> torch.Tensor:
        return 0.1 * weight


class Decays(Decay):
    def regularize(self) -> None:
        super().regularize()
        for tensor in self.tensors.values():
            tensor.data *= 0.9


class Nothing(Decay):
    def regularize(self) -> None:
        pass


class Unsteady(Decay):
    count = 0

    def term(self, weight: torch.Tensor) -> torch.Tensor:
        Unsteady.count += 1
        return Unsteady.count * weight


class Undefined(Decay):
    def term(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / weight.norm()


class Freezes(Decay):
    def regularize(self) -> None:
        super().regularize()
        next(iter(self.tensors.values())).requires_grad_(False)


class Thaws(Decay):
    def regularize(self) -> None:
        super().regularize()
        for tensor in self.tensors.values():
            tensor.grad = self.term(tensor.detach()) if tensor.grad is None else tensor.grad


class Forgets(Decay):
    def regularize(self) -> None:
        super().regularize()
        next(iter(self.tensors.values())).grad = None


class Stays(Decay):
    """Never looks again."""

    def refresh(self) -> None:
        if not hasattr(self, "weights"):
            super().refresh()
            self.weights = {key: tensor.detach().clone() for key, tensor in self.tensors.items()}

    def regularize(self) -> None:
        for key, tensor in self.tensors.items():
            if tensor.grad is not None and tensor.shape == self.weights[key].shape:
                tensor.grad.add_(self.weights[key])


def test_a_right_regularizer_passes() -> None:
    check_regularizer(Decay)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Decays, r"stem\.weight: regularize\(\) changes the weight itself, not its gradient"),
        (Nothing, "the regularizer changes no gradient"),
        (Unsteady, "made anew, the regularizer adds something else"),
        (Undefined, "the gradient is not finite"),
        (Freezes, "changes requires_grad"),
        (Thaws, "gives a frozen parameter a gradient"),
        (Forgets, "takes the gradient away"),
    ],
)
def test_wrong_regularizers_fail(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_regularizer(make)


def test_a_regularizer_that_does_not_refresh() -> None:
    with pytest.raises(AssertionError, match="once units were removed and refresh"):
        check_regularizer(Stays)


def elements(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
    sizer = plugin.Sizer(kept)
    return float(sum(torch.Size(map(sizer, p.dims)).numel() for p in analysis.parameters.values()))


def whole_groups(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
    """Forgets that a group may be listed in full."""
    return elements(analysis, kept) - len(kept)


def growing(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
    return 1000.0 / (1.0 + elements(analysis, kept))


def half(analysis: plugin.Analysis, kept: plugin.Kept) -> float:
    """Takes what is left for a square."""
    whole = elements(analysis, {})
    return whole * (elements(analysis, kept) / whole) ** 2


def test_a_right_cost_model_passes() -> None:
    check_cost(elements)
    check_cost(half, exact=False)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda analysis, kept: torch.tensor(1.0), "not a number"),
        (lambda analysis, kept: float("nan"), "the cost of the whole model is nan"),
        (lambda analysis, kept: -1.0, "the cost of the whole model is -1.0"),
        (whole_groups, "with every unit listed as kept the cost is"),
        (growing, "the cost grows from"),
        (lambda analysis, kept: 1.0, "no cut of any group lowers the cost"),
        (half, "predicted was"),
    ],
)
def test_wrong_cost_models_fail(cost: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_cost(cost)


def silent() -> Callable[[plugin.Repair], None]:
    return lambda repair: None


def spoiling() -> Callable[[plugin.Repair], None]:
    return lambda repair: repair.write("head.weight", torch.zeros(3, 3, dtype=torch.float64))


def broken() -> Callable[[plugin.Repair], None]:
    return lambda repair: repair.write("stem.weight", torch.full((3, 3, 3, 3), float("nan"), dtype=torch.float64))


class Drifts:
    """Every one of it is another one."""

    count = 0

    def __call__(self, repair: plugin.Repair) -> None:
        Drifts.count += 1
        repair.left["stem"] = "not mine"
        repair.write("stem.bias", torch.full((3,), 1e-9 * Drifts.count, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (silent, "changes nothing and doesn't say why"),
        (spoiling, "worse than the cut alone"),
        (broken, "not finite"),
        (Drifts, "made anew, the compensator leaves other values"),
    ],
)
def test_wrong_compensators_fail(make: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_compensator(make)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda ratio, steps: [0.0] + [ratio] * (steps - 1), "has 1 values, not 2"),
        (lambda ratio, steps: [ratio] * (steps + 1), "starts at 0.1, not at 0"),
        (lambda ratio, steps: [i / steps for i in range(steps + 1)], "ends at 1.0, not at 0.1"),
        (lambda ratio, steps: [0.0, 1.0, *[ratio] * (steps - 1)][: steps + 1], "ends at|falls from"),
    ],
)
def test_wrong_schedules_fail(schedule: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_schedule(schedule)


def unsaid(call: plugin.OpCall) -> list[plugin.Axis]:
    x, weight = call["x"], call["weight"]
    call.tie(x.axes[-1], weight.axes[1])
    return [*x.axes[:-1], weight.axes[0]]


def misnamed(call: plugin.OpCall) -> list[plugin.Axis]:
    return [call["input"].axes[0]]


def untied(call: plugin.OpCall) -> list[plugin.Axis]:
    """Takes the gains for something of their own."""
    call.role(call["gain"], 0, pk.Role.OUT)
    return unsaid(call)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            attrs.evolve(FOREIGN, opaque=plugin.Opaque(unsaid, foreign_fake)),
            r"whose rule is in .*: it says nothing about gain\[0\]",
        ),
        (
            attrs.evolve(FOREIGN, opaque=plugin.Opaque(untied, foreign_fake)),
            r"layer: without \[0, 2, 4\] the layer doesn't run: .* could not be broadcast",
        ),
        (
            attrs.evolve(FOREIGN, opaque=plugin.Opaque(misnamed, foreign_fake)),
            r"test_testing_others.py:\d+: its rule raised KeyError: .input: the arguments of .* are x, ",
        ),
        (
            attrs.evolve(FOREIGN, opaque=plugin.Opaque(foreign_rule, lambda module, x: x.new_empty(len(x), 1))),
            r"`fake` returns a tensor \(4, 1\) of torch.float32 on cpu, the layer a tensor \(4, 6\)",
        ),
        (
            attrs.evolve(FOREIGN, opaque=plugin.Opaque(foreign_rule, lambda module, x: [foreign_fake(module, x)])),
            "`fake` returns list of a tensor",
        ),
        (
            attrs.evolve(FOREIGN, attributes=lambda module, resizing: {}),
            "the layer doesn't run: .* 3 gains for a width of 6 .*state: none",
        ),
    ],
)
def test_wrong_opaque_layers_fail(kind: plugin.LayerType, message: str) -> None:
    layer = Foreign(5, 6)
    nn.init.normal_(layer.gain)
    with pytest.raises(AssertionError, match=message):
        check_layer_type(layer, torch.randn(4, 5), registry=registry_of({Foreign: kind}))

"""The kit itself: every check is shown to fail on a plugin that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit.testing import check_criterion, check_layer_type, check_rule, read_axes, sample

Register = Callable[..., pk.Registry]


def with_rules(**rules: plugin.Rule) -> pk.Registry:
    """A registry in which some operations of aten have other rules."""
    table = {f"aten::{name}": rule for name, rule in rules.items()}
    return pk.Registry(
        extra={"wrong": SimpleNamespace(prunekit_op_rules=plugin.hookimpl(lambda: table, specname="prunekit_op_rules"))}
    )


def with_layer(cls: type[nn.Module], kind: plugin.LayerType) -> pk.Registry:
    table = {cls: kind}
    return pk.Registry(
        extra={"wrong": SimpleNamespace(hook=plugin.hookimpl(lambda: table, specname="prunekit_layer_types"))}
    )


def test_sample() -> None:
    made = sample(3, 4)
    assert made.dtype is torch.float64
    assert sorted(made.flatten().tolist()) == [-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6]
    assert torch.equal(made, sample(3, 4))
    assert not torch.equal(made, sample(3, 4, seed=1))
    assert sample().shape == ()
    assert sample(2, dtype=torch.float32).dtype is torch.float32


def test_reading() -> None:
    read = read_axes(F.linear, [sample(2, 6), sample(4, 6), sample(4)], weights=[1, 2])
    assert str(read) == "a2 b6, c4 b6, c4 -> a2 c4"
    assert (read.role(1, 0), read.role(1, 1), read.role(2, 0), read.role(0, 1)) == (
        pk.Role.OUT,
        pk.Role.IN,
        pk.Role.ALONG,
        None,
    )
    assert read.kinds(1, 0) == {pk.Kind.NEURONS}
    assert read.verbs(0, 1) == set()
    assert read_axes(F.linear, [sample(2, 6), sample(4, 6)]).verbs(0, 1) == {plugin.Verb.CONTRACT}
    looked_up = read_axes(lambda x: x.select(1, 0), [sample(2, 3)])
    reason = looked_up.reason(0, 1)
    assert reason is not None
    assert reason.text == "one position of it is selected"
    assert reason.operation == "aten::select.int"
    assert looked_up.reason(0, 0) is None


def test_many_axes_have_two_letters() -> None:
    names = str(read_axes(lambda x: x, [sample(*[2] * 14)])).split(" -> ")[0].split()
    assert len(set(names)) == 14
    read = read_axes(lambda *tensors: tensors[0], [sample(2) for _ in range(28)])
    assert str(read).startswith("a2, b2, ")
    assert "z2, aa2, ab2" in str(read)


def test_a_right_rule_passes() -> None:
    assert (
        str(check_rule(lambda a, b: torch.cat([a, b], 1), [sample(2, 3), sample(2, 4)])) == "a2 b3, a2 c4 -> a2 (b3+c4)"
    )


@torch.library.custom_op("prunekit_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.sort().values


def like_input(call: plugin.OpCall) -> list[plugin.Axis]:
    return list(call.tensors()[0].axes)


def forgets_to_tie(call: plugin.OpCall) -> list[plugin.Axis]:
    return [call["self"].axes[0], call["mat2"].axes[1]]


def ties_too_little(call: plugin.OpCall) -> list[plugin.Axis]:
    call.tie(call["self"].axes[1], call["mat2"].axes[0])
    return [call["self"].axes[0], plugin.Axis(call.shape[1])]


def wrong_order(call: plugin.OpCall) -> list[plugin.Axis]:
    first, second = call["tensors"]
    return [plugin.concat([second.axes[0], first.axes[0]])]


def not_marked(call: plugin.OpCall) -> list[plugin.Axis]:
    return [call["self"].axes[0]]


def wrong_factors(call: plugin.OpCall) -> list[plugin.Axis]:
    outer, inner = plugin.split(call["self"].axes[1], call.shape[2], call.shape[1])
    return [call["self"].axes[0], inner, outer]


def wrong_expectation(call: plugin.OpCall) -> list[list[plugin.Axis]]:
    low, high = plugin.cut(call["self"].axes[0], [0, 2, 5])
    call.expect("split_sizes", [high], 0)
    call.expect("split_sizes", [low], 1)
    return [[low], [high]]


def raises(call: plugin.OpCall) -> list[plugin.Axis]:
    raise KeyError("oops")


def wrong_size(call: plugin.OpCall) -> list[plugin.Axis]:
    return [plugin.Axis(99)]


WRONG: list[tuple[dict[str, plugin.Rule], Callable[..., Any], Sequence[tuple[int, ...]], str]] = [
    ({"cumsum": like_input}, lambda x: torch.cumsum(x, 0), [(5,)], "not the same as slicing the output"),
    ({"flip": like_input}, lambda x: torch.flip(x, (0,)), [(5,)], "not the same as slicing the output"),
    ({"roll": like_input}, lambda x: torch.roll(x, 1, 0), [(5,)], "not the same as slicing the output"),
    ({"mm": forgets_to_tie}, torch.mm, [(3, 4), (4, 5)], "aten::mm raises on self="),
    ({"mm": ties_too_little}, torch.mm, [(3, 4), (4, 5)], "not the same as slicing the output|aten::mm gives shape"),
    ({"cat": wrong_order}, lambda a, b: torch.cat([a, b]), [(5,), (5,)], "not the same as slicing the output"),
    ({"sum": not_marked}, lambda x: x.sum(1), [(3, 4)], "not the same as slicing the output"),
    (
        {"view": plugin.OpRule(wrong_factors, sizes={"size": "it is the shape of the output"})},
        lambda x: x.view(2, 3, 4),
        [(2, 12)],
        "not the same as slicing the output",
    ),
    (
        {"split_with_sizes": wrong_expectation},
        lambda x: x.split_with_sizes([2, 3]),
        [(5,)],
        "aten::split_with_sizes (raises on|gives shape)",
    ),
    (
        {"cumsum": raises},
        lambda x: torch.cumsum(x, 0),
        [(5,)],
        "not understood: aten::cumsum: its rule raised KeyError",
    ),
    ({"cumsum": wrong_size}, lambda x: torch.cumsum(x, 0), [(5,)], r"not understood: .* gives the sizes \(99,\)"),
    ({}, unknown, [(5,)], "prunekit_tests::unknown: no rule for this operation"),
    ({}, lambda x: torch.cumsum(x, 0), [(5,)], "no axis of the tensors is free, so the check proves nothing"),
]


@pytest.mark.parametrize(("rules", "function", "shapes", "message"), WRONG)
def test_wrong_rules_fail(
    rules: dict[str, plugin.Rule], function: Callable[..., Any], shapes: Sequence[tuple[int, ...]], message: str
) -> None:
    tensors = [sample(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    with pytest.raises(AssertionError, match=message):
        check_rule(function, tensors, registry=with_rules(**rules))


def test_tolerance() -> None:
    function = torch.tanh
    halves = torch.rand(3, 33, dtype=torch.float64)
    check_rule(function, [halves], tolerance=1e-12)
    with pytest.raises(AssertionError, match="not the same"):
        check_rule(lambda x: torch.cumsum(x, 0), [halves], tolerance=1e-3, registry=with_rules(cumsum=like_input))


def test_random_results_need_shapes_only() -> None:
    with pytest.raises(AssertionError, match="not the same"):
        check_rule(torch.rand_like, [sample(3, 4)])
    check_rule(torch.rand_like, [sample(3, 4)], values=False)


def test_every_tensor_must_be_passed() -> None:
    hidden = sample(3)
    with pytest.raises(AssertionError, match="every tensor that the function uses must be passed"):
        check_rule(lambda x: x * hidden, [sample(2, 3)])


def test_a_function_that_raises() -> None:
    with pytest.raises(pk.RecordingError):
        check_rule(torch.mm, [sample(2, 3), sample(2, 3)])


# -- layer types


def no_attributes(module: nn.Module, resizing: plugin.Resizing) -> Mapping[str, Any]:
    return {}


def swapped_attributes(module: nn.Module, resizing: plugin.Resizing) -> Mapping[str, Any]:
    return {"in_features": resizing.size("weight", 0), "out_features": resizing.size("weight", 1)}


def cuts_the_wrong_end(layer: nn.Module, indices: Sequence[int]) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    plugin.shrink_tensor(layer.weight, {0: torch.arange(layer.out_features - len(indices))})
    plugin.shrink_tensor(layer.bias, {0: torch.arange(layer.out_features - len(indices))})
    layer.out_features -= len(indices)
    return layer


def rows(module: nn.Module, layouts: Mapping[str, tuple[plugin.Layout, ...]]) -> plugin.Layout | None:
    return layouts["weight"][0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (plugin.LayerType("linear", attributes=swapped_attributes), "before pruning: linear.in_features is 4"),
        (plugin.LayerType("linear", prune_out=cuts_the_wrong_end, flat_out=rows), "cuts_the_wrong_end leaves"),
    ],
)
def test_wrong_layer_types_fail(kind: plugin.LayerType, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_layer_type(nn.Linear(4, 6), torch.randn(3, 4), registry=with_layer(nn.Linear, kind))


class Folds(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(-1) if self.training else x) * x.mean(-1, keepdim=True)


def test_a_layer_that_is_another_program_in_train_mode() -> None:
    other = plugin.LayerType("folds", same_in_training=True)
    with pytest.raises(AssertionError, match=r"folds.same_in_training: in eval mode the groups are"):
        check_layer_type(Folds(4, 6), torch.randn(3, 4), registry=with_layer(Folds, other))


def test_a_sum_near_zero_is_no_failure() -> None:
    """By this seed a single random sum of the outputs nearly vanishes, and rounding was large beside it."""
    torch.manual_seed(437)
    assert check_layer_type(nn.Linear(5, 6), torch.randn(4, 5))


def test_a_class_without_a_layer_type() -> None:
    with pytest.raises(AssertionError, match="Tanh has no layer type"):
        check_layer_type(nn.Tanh(), torch.randn(3, 4))


class Stuck(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.cumsum(-1)).cumsum(-1)


def test_a_layer_that_can_not_shrink() -> None:
    with pytest.raises(AssertionError, match="no unit of linear can be removed"):
        check_layer_type(Stuck(4, 6), torch.randn(3, 4))


# -- criteria


def members(group: pk.Group) -> torch.Tensor:
    return torch.stack(
        [view.per_unit(view.slices(view.tensor.detach()).abs().sum(1), group.size()) for view in group.views()]
    )


class Calls:
    """Every score is a new number."""

    count = 0

    def __call__(self, group: pk.Group) -> torch.Tensor:
        Calls.count += 1
        return torch.full((group.size(),), float(Calls.count))


CRITERIA: list[tuple[Callable[[], Any], str]] = [
    (lambda: lambda group: None, "scores no group"),
    (lambda: lambda group: torch.ones(group.size() + 1), "units, scores"),
    (lambda: lambda group: torch.ones(group.size(), 1), "units, scores"),
    (lambda: lambda group: torch.full((group.size(),), float("nan")), "not finite"),
    (lambda: lambda group: members(group).sum(0) / (members(group).sum(0).std()), "not finite"),
    (Calls, "made anew"),
    (lambda: lambda group: torch.arange(group.size()) * 1.0, "don't follow the order|don't take their scores along"),
    (lambda: lambda group: members(group).sum(0).sort().values, "don't follow the order|don't take their scores along"),
]


@pytest.mark.parametrize(("make", "message"), CRITERIA)
def test_wrong_criteria_fail(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_criterion(make)


def test_a_right_criterion_passes() -> None:
    check_criterion(lambda: lambda group: members(group).sum(0))


def test_preparation() -> None:
    def gradients(model: nn.Module, batch: torch.Tensor) -> None:
        model(batch).square().sum().backward()

    def taylor(group: pk.Group) -> torch.Tensor:
        views = [view for view in group.views() if view.tensor.grad is not None]
        scores = [
            view.per_unit(view.slices(view.tensor.detach() * view.tensor.grad).abs().sum(1), group.size())
            for view in views
        ]
        return torch.stack(scores).sum(0)

    check_criterion(lambda: taylor, prepare=gradients)
    with pytest.raises(AssertionError, match=r"scoring the group raises RuntimeError: stack .*test_testing.py:\d+\)"):
        check_criterion(lambda: taylor)

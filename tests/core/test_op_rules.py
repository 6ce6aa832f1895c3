"""A rule is a value: equal meanings are equal, wrong values are errors, and a bare function stands for its ties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

import prunekit as pk
from prunekit import plugin
from prunekit.plugin import ELEMENTWISE, Addition, Axis, OpCall, OpRule, Scaling
from prunekit.testing import check_rule, sample
from prunekit_core.plugins.blame import site_of
from prunekit_core.program.rules import RuleTable, as_rule, scaling_of

RELU = torch.ops.aten.relu.default


def like_input(call: OpCall) -> list[Axis]:
    return list(call["self"].axes)


def test_a_rule_that_says_nothing_more_than_ties() -> None:
    rule, nothing = OpRule(like_input), frozenset()
    assert attrs.astuple(rule, recurse=False) == (
        like_input,
        None,
        None,
        (),
        None,
        None,
        None,
        None,
        nothing,
        nothing,
        {},
    )


def test_equal_meanings_are_equal() -> None:
    rule = OpRule(like_input, scaling=Scaling.SUM, factors=["beta", "alpha", "beta"], numbers=["self"])
    assert rule.factors == ("alpha", "beta")
    assert OpRule(like_input, scaling=Scaling.SUM, factors="alpha").factors == ("alpha",)
    assert rule.numbers == OpRule(like_input, numbers="self").numbers == frozenset({"self"})


def test_a_rule_keeps_its_own_sizes() -> None:
    sizes = {"size": "the shape"}
    rule = OpRule(like_input, sizes=sizes)
    sizes["other"] = "another"
    assert rule.sizes == attrs.evolve(rule, scaling=Scaling.MOVED).sizes == {"size": "the shape"}
    with pytest.raises(TypeError):
        rule.sizes["size"] = ""  # type: ignore[index]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ties": 3}, "ties.*a function, and is 3"),
    ({"ties": OpRule(like_input)}, "ties.*a function"),
    ({"like": "input"}, "like.*a function, and is 'input'"),
    ({"scaling": "sum"}, "scaling.*of type Scaling, and is 'sum'"),
    ({"factors": "alpha"}, "factors.*empty where scaling isn't said"),
    ({"scaling": Scaling.SUM, "factors": [1]}, "factors.*names of arguments"),
    ({"scaling": Scaling.SUM, "factors": "alpha, beta"}, "factors.*names of arguments"),
    ({"zeros": True}, "zeros.*ELEMENTWISE or a function, and is True"),
    ({"zeros": type(ELEMENTWISE)}, "zeros.*ELEMENTWISE or a function"),
    ({"reads": Addition("self", "other", "alpha")}, "reads.*of type Reading"),
    ({"centres": "running_mean"}, "centres.*of type Centring"),
    ({"adds": ("self", "other")}, "adds.*of type Addition"),
    ({"numbers": ["zero point"]}, "numbers.*names of arguments"),
    ({"sizes": ["size"]}, "sizes.*a mapping of names of arguments to reasons, and is .'size'"),
    ({"sizes": {"size": ""}}, "sizes.*a mapping of names of arguments to reasons"),
    ({"sizes": {"size, stride": "the shape"}}, "sizes.*a mapping of names of arguments to reasons"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_values_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=f"(?s)An op rule has a wrong value.*{message}"):
        OpRule(**{"ties": like_input, **values})


def test_a_bare_function_stands_for_its_ties() -> None:
    rule = OpRule(like_input, scaling=Scaling.SUM)
    assert as_rule(rule) is rule
    assert as_rule(like_input).ties is like_input
    table = RuleTable({"aten::relu": like_input, "aten::tanh": rule})
    found = table.find(RELU)
    assert found is not None
    assert found.ties is like_input
    assert table.find(RELU) is found
    assert table.find(torch.ops.aten.tanh_.default) is rule
    assert table.find(torch.ops.aten.sin.default) is None
    assert scaling_of(table, torch.ops.aten.tanh.default) is Scaling.SUM
    assert scaling_of(table, RELU) is scaling_of(table, torch.ops.aten.sin.default) is None


@pytest.mark.parametrize("rule", [like_input, OpRule(like_input, zeros=ELEMENTWISE)], ids=["function", "value"])
def test_both_come_through_the_hook_and_are_found_in_their_file(rule: plugin.Rule) -> None:
    hook = plugin.hookimpl(lambda: {"aten::relu": rule}, specname="prunekit_op_rules")
    registry = pk.Registry(extra={"mine": SimpleNamespace(hook=hook)})
    origin = registry.rule_origin(RELU)
    assert origin is not None
    assert (origin.owner.name, origin.site) == ("mine", site_of(like_input))
    assert str(check_rule(torch.relu, [sample(2, 3)], registry=registry)) == "a2 b3 -> a2 b3"


def test_the_rule_of_an_opaque_layer_holds_ties_only() -> None:
    assert plugin.Opaque(like_input).rule.ties is plugin.Opaque(OpRule(like_input)).rule.ties is like_input
    with pytest.raises(pk.ArgumentError, match=r"(?s)says more than how it ties axes.*where: scaling, sizes"):
        plugin.Opaque(OpRule(like_input, scaling=Scaling.SUM, sizes={"size": "the shape"}))
    with pytest.raises(pk.ArgumentError, match="An op rule has a wrong value"):
        plugin.Opaque(3)  # type: ignore[arg-type]

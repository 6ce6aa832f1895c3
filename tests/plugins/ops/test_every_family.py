"""No rule is left out: every family of rules has a test file, whose cases meet all of its rules."""

from __future__ import annotations

import importlib

import torch

from prunekit.plugin import OpRule
from prunekit_plugins.ops import FAMILIES, prunekit_op_rules


def test_every_family_has_cases_that_meet_its_rules() -> None:
    for family in FAMILIES:
        tests = importlib.import_module(f"tests.plugins.ops.test_{family.__name__.rpartition('.')[2]}")
        assert tests.CASES
        assert callable(tests.test_every_rule_is_met)


def test_every_rule_belongs_to_one_family() -> None:
    keys = [key for family in FAMILIES for key in family.RULES]
    assert len(keys) == len(set(keys)) == len(prunekit_op_rules())


def arguments_of(key: str) -> set[str]:
    """The names of the arguments of an operation, of all overloads where the key names none."""
    packet, _, overload = key.removeprefix("aten::").partition(".")
    found = getattr(torch.ops.aten, packet)
    schemas = [getattr(found, name)._schema for name in ([overload] if overload else found.overloads())]
    return {argument.name for schema in schemas for argument in schema.arguments}


def named_by(rule: OpRule) -> set[str]:
    """The names of arguments in a rule."""
    forms = [tuple(filter(None, (form.source, form.weight, form.bias))) for form in [rule.reads] if form is not None]
    means = [(mean.source, mean.mean, mean.switch) for mean in [rule.centres] if mean is not None]
    sums = [(both.first, both.second, both.factor) for both in [rule.adds] if both is not None]
    return {*rule.factors, *rule.numbers, *rule.sizes}.union(*forms, *means, *sums)


def test_rules_name_arguments_that_an_operation_has() -> None:
    """A family may share one rule: then one of its operations has the argument."""
    keys: dict[OpRule, set[str]] = {}
    for key, rule in prunekit_op_rules().items():
        if isinstance(rule, OpRule) and isinstance(key, str) and key.startswith("aten::"):
            keys.setdefault(rule, set()).add(key)
    naming = {rule: found for rule, found in keys.items() if named_by(rule)}
    assert len(naming) > 20
    for rule, found in naming.items():
        assert named_by(rule) <= set().union(*map(arguments_of, found)), found

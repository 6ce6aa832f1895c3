"""No rule is left out: every family of rules has a test file, whose cases meet all of its rules."""

from __future__ import annotations

import importlib

from prunekit_plugins.ops import FAMILIES, prunekit_op_rules


def test_every_family_has_cases_that_meet_its_rules() -> None:
    for family in FAMILIES:
        tests = importlib.import_module(f"tests.plugins.ops.test_{family.__name__.rpartition('.')[2]}")
        assert tests.CASES
        assert callable(tests.test_every_rule_is_met)


def test_every_rule_belongs_to_one_family() -> None:
    keys = [key for family in FAMILIES for key in family.RULES]
    assert len(keys) == len(set(keys)) == len(prunekit_op_rules())

"""Written answers for op rules: an expression, and what the rules must say about its axes.

An answer is written as `prunekit.testing.AxesRead` prints it: ``a2 b3, a2 c4 -> a2 (b3+c4)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F

from prunekit import default_registry
from prunekit.plugin import Rule
from prunekit.testing import AxesRead, check_rule, read_axes, sample

NAMES = {"torch": torch, "F": F, "aten": torch.ops.aten}


@attrs.frozen(eq=False)
class Case:
    """An expression over some tensors, with the answer.

    Attributes:
        expression: Python source; the tensors go by their names.
        answer: The axes of inputs and outputs.
        tensors: The inputs.
        weights: Names of those that are parameters of the operation.
        pins: Input dims (``"x1"``) to the text of the reason that pins them.
        says: Input dims to everything that is said of them: roles, kinds, verbs (``"out channels"``), sorted.
        gap: Part of why the operation isn't understood; empty where it is.
        unrun: Why it isn't executed on smaller tensors; empty where it is.
        values: False for random or uninitialised results.
        tolerance: Allowed relative difference; 0 is bit by bit.
        slow: Whether it is left out of the quick half: where values are asked for, caches are searched in each run.
    """

    expression: str
    answer: str
    tensors: dict[str, torch.Tensor]
    weights: tuple[str, ...]
    pins: dict[str, str]
    says: dict[str, str]
    gap: str
    unrun: str
    values: bool
    tolerance: float
    slow: bool

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in self.tensors.items())
        return f"{self.expression} of {shapes}"

    def function(self, *tensors: torch.Tensor) -> Any:
        return eval(self.expression, {**NAMES, **dict(zip(self.tensors, tensors, strict=True))})

    def arguments(self) -> dict[str, Any]:
        return {"weights": [position for position, name in enumerate(self.tensors) if name in self.weights]}

    def read(self) -> AxesRead:
        return read_axes(self.function, list(self.tensors.values()), **self.arguments())

    def _place(self, key: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\w+?)(\d+)", key)
        assert found, key
        return list(self.tensors).index(found[1]), int(found[2])

    def check_written(self) -> None:
        """Compares what the rules say with the answer."""
        read = self.read()
        assert str(read) == self.answer
        for key, text in self.pins.items():
            reason = read.reason(*self._place(key))
            assert reason is not None, f"{key} is not pinned"
            assert reason.text == text
        for key, words in self.says.items():
            place = self._place(key)
            role = read.role(*place)
            said = [*([role] if role else []), *read.kinds(*place), *read.verbs(*place)]
            assert sorted(word.value for word in said) == words.split(), key
        gaps = "; ".join(read.not_understood)
        assert self.gap in gaps if self.gap else not gaps

    @property
    def free(self) -> bool:
        """Whether anything can be removed, so that execution can prove something."""
        return not self.gap and not self.unrun and bool(re.search("[a-z]", self.answer.split("->")[0]))

    def check_executed(self) -> None:
        """Slices the inputs, runs again, compares with slicing the output."""
        tensors = list(self.tensors.values())
        read = check_rule(self.function, tensors, values=self.values, tolerance=self.tolerance, **self.arguments())
        assert str(read) == self.answer

    def keys(self) -> set[str | torch.Tag]:
        """Names the rules that the expression meets."""
        rules = default_registry().op_rules
        found = (rules.key(operation.op) for operation in self.read().propagation.trace.operations)
        return {key for key in found if key is not None}


def case(
    expression: str,
    answer: str,
    *,
    weights: str = "",
    pins: dict[str, str] | None = None,
    says: dict[str, str] | None = None,
    gap: str = "",
    unrun: str = "",
    values: bool = True,
    tolerance: float = 0.0,
    slow: bool = False,
    **tensors: torch.Tensor | tuple[int, ...],
) -> Case:
    """Makes a case; a tensor given by its shape holds distinct whole numbers."""
    made = {
        name: given if isinstance(given, torch.Tensor) else sample(*given, seed=position)
        for position, (name, given) in enumerate(tensors.items())
    }
    return Case(
        expression, answer, made, tuple(weights.split()), pins or {}, says or {}, gap, unrun, values, tolerance, slow
    )


def missing_ops(rules: Mapping[str | torch.Tag, Rule]) -> list[str]:
    """Lists the keys of a rule table that name no existing aten operation."""
    missing = []
    for key in rules:
        if isinstance(key, str):
            packet, _, overload = key.removeprefix("aten::").partition(".")
            found = getattr(torch.ops.aten, packet, None)
            if found is None or (overload and overload not in found.overloads()):
                missing.append(key)
    return missing


def unmet_keys(rules: Mapping[str | torch.Tag, Rule], cases: list[Case], excused: dict[str, str]) -> list[str]:
    """Lists the keys of a rule table that no case meets, but for the excused ones and those of no operation."""
    excused = {**excused, **dict.fromkeys(missing_ops(rules), "no such operation")}
    met = set().union(*(each.keys() for each in cases))
    return [str(key) for key in rules if key not in met and key not in excused]


def checks_of(
    rules: Mapping[str | torch.Tag, Rule], cases: list[Case], excused: dict[str, str]
) -> tuple[Callable[..., None], ...]:
    """Makes the tests of a family of rules: written answers, those executed, keys that exist, and no rule left out.

    Args:
        rules: The family's rules.
        cases: Its cases.
        excused: Keys that no case meets, with the reason.
    """

    def parameters(chosen: Iterable[Case]) -> list[Any]:
        return [pytest.param(c, id=str(c), marks=[pytest.mark.slow] if c.slow else []) for c in chosen]

    @pytest.mark.parametrize("case", parameters(cases))
    def written(case: Case) -> None:
        case.check_written()

    @pytest.mark.parametrize("case", parameters(case for case in cases if case.free))
    def executed(case: Case) -> None:
        case.check_executed()

    def keys() -> None:
        assert missing_ops(rules) == []

    @pytest.mark.slow  # runs all cases once more
    def met() -> None:
        assert unmet_keys(rules, cases, excused) == []

    return written, executed, keys, met

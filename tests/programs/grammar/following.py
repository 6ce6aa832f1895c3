"""Numbers of a program become functions of a size: ``2`` becomes ``v3.shape[1] // 4``."""

from __future__ import annotations

import ast
import io
import random
import tokenize
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from tests.programs.grammar.program import Statement

MOST = 64
"""Numbers above this aren't replaced."""


@attrs.frozen
class Literal:
    """A number or truth value in a statement."""

    line: int
    start: int
    end: int
    value: int | float | bool


def literals(text: str) -> list[Literal]:
    """Finds the numbers in Python source, strings and names aside."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        number = token.type == tokenize.NUMBER
        if number or (token.type == tokenize.NAME and token.string in ("True", "False")):
            value = ast.literal_eval(token.string)
            if not isinstance(value, complex) and abs(value) <= MOST:
                found.append(Literal(token.start[0] - 1, token.start[1], token.end[1], value))
    return found


def sizes(statements: Sequence[Statement], space: dict[str, Any], inputs: Sequence[str]) -> list[tuple[str, int]]:
    """Lists the sizes that can be asked for after some statements, with what they are; layers' values first."""
    names = [s.target for s in statements if s.target]
    found = []
    for name in names:
        tensor = space.get(name)
        if isinstance(tensor, torch.Tensor):
            found.extend((f"{name}.shape[{dim}]", size) for dim, size in enumerate(tensor.shape) if dim and size > 2)
    return found + [(f"{name}.shape[-1]", space[name].shape[-1]) for name in inputs if space[name].dim() > 1]


def expression(rng: random.Random, size: str, n: int, value: int | float | bool) -> str:
    """Writes a value as a function of a size ``n`` that has it at this size."""
    if isinstance(value, bool):
        return f"({size} > {n // 2})" if value else f"({size} < {max(n - 1, 1)})"
    if isinstance(value, float):
        options = [f"({value / n!r} * {size})", f"({value * n!r} / {size})", f"({value * n**0.5!r} * {size} ** -0.5)"]
        return rng.choice(options)
    options = [f"({size} - {n - value})"] if n > value else [f"({size} + {value - n})"]
    options += [f"({size} // {q})" for q in range(2, n + 2) if n // q == value][:3] * 2
    options += [f"(({size} + {q - 1}) // {q})" for q in range(2, n + 2) if (n + q - 1) // q == value][:1]
    if value == n:
        options = [size]
    if n > value > 0:
        options += [f"max({size} // {q}, {value})" for q in (4,) if n // q <= value]
    if n > value:
        options += [f"({size} % {q})" for q in range(2, n + 1) if n % q == value][:1]
    return rng.choice(options)


def following(
    rng: random.Random, statements: Sequence[Statement], space: dict[str, Any], inputs: Sequence[str], times: int
) -> list[Statement]:
    """Makes some numbers of a program follow sizes.

    Args:
        rng: What is drawn from.
        statements: The program.
        space: All its values.
        inputs: Names of its inputs.
        times: How many numbers at most.

    Returns:
        The statements, changed.
    """
    result = list(statements)
    for _ in range(times):
        places = [(k, literal) for k, s in enumerate(result) for literal in literals(s.text)]
        if not places:
            return result
        k, literal = rng.choice(places)
        known = sizes(result[:k], space, inputs)
        if not known:
            continue
        size, n = rng.choice(known)
        lines = result[k].text.split("\n")
        line = lines[literal.line]
        made = expression(rng, size, n, literal.value)
        lines[literal.line] = line[: literal.start] + made + line[literal.end :]
        result[k] = attrs.evolve(result[k], text="\n".join(lines))
    return result

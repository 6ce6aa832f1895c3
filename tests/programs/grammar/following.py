"""Numbers of a program become functions of a size: ``2`` becomes ``v3.shape[1] // 4``."""

from __future__ import annotations

import ast
import io
import random
import re
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


FRESH = re.compile(r"v\d+ = (self\.m\d+\(|F\.linear\(|F\.conv|v\d+ @ self)")
"""Statements whose result has units of its own."""


def sizes(statements: Sequence[Statement], space: dict[str, Any], fresh: bool) -> list[tuple[str, int]]:
    """Lists the sizes that can be asked for after some statements, with what they are.

    Args:
        statements: The program so far.
        space: Its values.
        fresh: Only those of the results of layers, most of which shrink.
    """
    found = []
    for statement in statements:
        tensor = space.get(statement.target)
        if isinstance(tensor, torch.Tensor) and (not fresh or FRESH.match(statement.text)):
            dims = [(dim, size) for dim, size in enumerate(tensor.shape) if dim and size > 3]
            found.extend((f"{statement.target}.shape[{dim}]", size) for dim, size in dims)
    return found


def pure(statements: Sequence[Statement]) -> set[str]:
    """Names the values that were made of the inputs alone, so that their sizes never change."""
    found: set[str] = set()
    for statement in statements:
        if statement.target and "self" not in statement.text and statement.reads <= found:
            found.add(statement.target)
    return found


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
    rng: random.Random, statements: Sequence[Statement], space: dict[str, Any], times: int
) -> list[Statement]:
    """Makes some numbers of a program follow sizes.

    Args:
        rng: What is drawn from.
        statements: The program.
        space: All its values.
        times: How many numbers at most.

    Returns:
        The statements, changed.
    """
    result = list(statements)
    for _ in range(times):
        places = [(k, literal) for k, s in enumerate(result) for literal in literals(s.text)]
        if not places:
            return result
        lone = pure(result)
        k, literal = rng.choices(places, [8.0 if result[k].target in lone else 1.0 for k, _ in places])[0]
        known = sizes(result[:k], space, fresh=True) if rng.random() < 0.8 else []
        known = known or sizes(result[:k], space, fresh=False)
        if not known:
            continue
        size, n = rng.choice(known)
        lines = result[k].text.split("\n")
        line = lines[literal.line]
        made = expression(rng, size, n, literal.value)
        lines[literal.line] = line[: literal.start] + made + line[literal.end :]
        result[k] = attrs.evolve(result[k], text="\n".join(lines))
    return result

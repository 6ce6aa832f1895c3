"""A program that disagrees becomes small: statements go as long as the disagreement stays."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from tests.programs.grammar.judge import Outcome, judge
from tests.programs.grammar.program import NAME, Program, Statement


def shrink(program: Program, outcome: Outcome, tries: int = 300) -> Program:
    """Makes a program smaller that still ends in an outcome.

    Args:
        program: The program.
        outcome: What has become of it.
        tries: How many smaller programs are judged at most.
    """
    progress = True
    while progress and tries > 0:
        progress = False
        for smaller in _smaller(program):
            tries -= 1
            if tries <= 0:
                break
            if _same(smaller, outcome):
                program, progress = smaller, True
                break
    return program


def _same(program: Program, outcome: Outcome) -> bool:
    try:
        model, inputs = program.build()
        return judge(model, inputs, program.seed).outcome is outcome
    except Exception:  # what can't even be built is no such program
        return False


def _smaller(program: Program) -> Iterator[Program]:
    """Yields the program without a statement and what depends on it, or with a value in place of another."""
    if outputs := NAME.findall(program.outputs):
        if program.outputs not in outputs:
            for name in dict.fromkeys(outputs):
                yield _pruned(attrs.evolve(program, outputs=name))
        last = outputs[0]
        for statement in reversed(program.statements):
            if program.outputs == last and statement.target and statement.target != last:
                yield _pruned(attrs.evolve(program, outputs=statement.target))
    for position, statement in enumerate(program.statements):
        rest = program.statements[:position] + program.statements[position + 1 :]
        if not statement.target:
            yield _pruned(attrs.evolve(program, statements=rest))
            continue
        for other in sorted(statement.reads):
            yield _pruned(_renamed(attrs.evolve(program, statements=rest), position, statement.target, other))


def _renamed(program: Program, position: int, old: str, new: str) -> Program:
    pattern = re.compile(rf"\b{old}\b")
    changed = tuple(
        attrs.evolve(s, text=pattern.sub(new, s.text)) if k >= position else s for k, s in enumerate(program.statements)
    )
    return attrs.evolve(program, statements=changed, outputs=pattern.sub(new, program.outputs))


def _pruned(program: Program) -> Program:
    """Drops statements whose values nobody reads."""
    kept: list[Statement] = []
    needed = set(NAME.findall(program.outputs))
    for statement in reversed(program.statements):
        if statement.target in needed or (not statement.target and statement.names & needed):
            kept.insert(0, statement)
            needed |= statement.names
    return attrs.evolve(program, statements=tuple(kept))

"""Programs by number, written and judged, in several processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator

import attrs
import torch

from tests.programs.grammar.judge import Outcome, Verdict, judge
from tests.programs.grammar.program import Program
from tests.programs.grammar.writing import write


@attrs.frozen
class Trial:
    """One program and what became of it."""

    seed: int
    verdict: Verdict
    made_by: tuple[str, ...]
    seconds: float


def trial(seed: int) -> Trial:
    """Writes a program and judges it; a disagreement must show with other values, too."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    program = write(seed)
    verdict = verdict_of(program)
    return Trial(seed, verdict, program.made_by, time.perf_counter() - started)


def verdict_of(program: Program) -> Verdict:
    """Judges a program on up to three draws of its values: a difference counts if it isn't a matter of rounding."""
    verdict = judge(*program.build(), program.seed, any_batch=program.any_batch)
    for variant in (1, 2):
        if verdict.outcome not in (Outcome.DIFFERS, Outcome.TRAIN, Outcome.CHECK_ALARM, Outcome.CHECK_TOLD):
            return verdict
        again = judge(*program.build(variant), program.seed, any_batch=program.any_batch)
        if again.disagrees:
            return verdict
    return attrs.evolve(verdict, outcome=Outcome.UNFIT, detail="rounding decides")


def trials(seeds: Iterable[int], jobs: int) -> Iterator[Trial]:
    """Runs trials, in order."""
    if jobs == 1:
        yield from map(trial, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(trial, seeds, chunksize=16)

"""Proving an allocator: what it picks is a solution of the problem, and the same every time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prunekit_plugins.budgets.knapsack import Choice, Problem
from prunekit_plugins.testing.failure import failing, require

SEEDS = 3
FRACTIONS = (1.0, 0.7, 0.4)
"""How much of the costs of the whole model may be spent."""


def check_allocator(allocator: Callable[[Problem], Sequence[int]]) -> None:
    """Proves an allocator on problems of a few groups, whose costs are sums of products of their sizes.

    It must pick one option of every choice, meet the budget, do the same when asked again, and pick more than the
    smallest options where the budget has room for more.

    Args:
        allocator: The function, ``(Problem) -> picked options``.

    Raises:
        AssertionError: One of the above doesn't hold, or the allocator raises.
    """
    require(callable(allocator), "check_allocator", "a function (Problem) -> picked options", allocator)
    tried, smallest = 0, 0
    for problem in _problems():
        picked = _picked(allocator, problem)
        assert problem.fits(picked), (
            f"the allocator picks {list(picked)}, which costs {dict(problem.spent(problem.units(picked)))}; allowed is "
            f"{dict(problem.allowed)}"
        )
        again = _picked(allocator, problem)
        assert list(again) == list(picked), f"the allocator picks {list(picked)} and, asked again, {list(again)}"
        tried += 1
        smallest += tuple(picked) == problem.smallest
    assert smallest < tried, "the allocator picks the smallest option of every choice, whatever the budget"


def _picked(allocator: Callable[[Problem], Any], problem: Problem) -> Sequence[int]:
    with failing("the allocator", allocator):
        picked = allocator(problem)
    sizes = [len(choice.options) for choice in problem.choices]
    whole = isinstance(picked, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in picked)
    assert whole, f"the allocator returns {picked!r}, not a list with the number of an option for each choice"
    assert len(picked) == len(sizes), f"the allocator picks {len(picked)} options for {len(sizes)} choices"
    for place, (option, size) in enumerate(zip(picked, sizes, strict=True)):
        assert 0 <= option < size, f"the allocator picks option {option} of choice {place}, which has {size}"
    return list(picked)


def _problems() -> Iterator[Problem]:
    for seed in range(SEEDS):
        draw = random.Random(seed)
        choices = tuple(_choice(f"group{place}", draw) for place in range(2 + seed))
        whole = _spent({**_sizes(choices), "fixed": 3})
        for fraction in FRACTIONS:
            allowed = {name: max(fraction, 0.05 * seed) * cost for name, cost in whole.items()}
            problem = Problem(choices, _spent, allowed, {"fixed": 3})
            if problem.fits(problem.smallest):
                yield problem


def _choice(name: str, draw: random.Random) -> Choice:
    """A group, one size after the other, whose units do more and more damage."""
    options = tuple({name: size} for size in range(draw.randint(4, 9), 0, -1))
    damages = [0.0]
    for _ in options[1:]:
        damages.append(damages[-1] + draw.random())
    return Choice(options, tuple(damages))


def _sizes(choices: Sequence[Choice]) -> dict[str, int]:
    return {name: size for choice in choices for name, size in choice.options[0].items()}


def _spent(units: Mapping[str, int]) -> Mapping[str, float]:
    """Costs of a chain of layers: products of neighbouring sizes, and the sum of the sizes."""
    sizes = [units[name] for name in sorted(units)]
    products = sum(one * other for one, other in itertools.pairwise(sizes))
    return {"macs": float(products), "features": float(sum(sizes))}

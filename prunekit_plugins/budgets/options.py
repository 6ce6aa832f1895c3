"""The sizes that groups may take: one list for each group, or for each set of groups that shrink in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from prunekit_core.choose.candidates import Candidate, Scope
from prunekit_core.choose.chooser import Chooser

MOST = 64
"""Sizes of one group that are looked at; larger groups go in larger steps."""

Options = tuple[Mapping[str, int], ...]
"""Sizes of groups that shrink together, from all units to the fewest."""


def free_options(chooser: Chooser, scopes: Sequence[Scope]) -> list[Options]:
    """Lists the sizes of everything whose size is up for choice.

    ``max_pruning_ratio``, ``round_to``, channel blocks and ties are respected. Groups with a ratio of their own
    (and what is tied to one) aren't up for choice.

    Args:
        chooser: The groups that were scored, with their limits and ties.
        scopes: The scopes that they are in.
    """
    free = [name for scope in scopes if not scope.fixed for name in scope.groups if name in chooser.candidates]
    found: list[Options] = []
    tied = {name for tie in chooser.ties for name in tie.sizes}
    for tie in chooser.ties:
        if all(name in free for name in tie.sizes):
            found.append(_thinned([tie.at(step) for step in reversed(tie.allowed)]))
    found += [_sizes(name, chooser.candidates[name]) for name in free if name not in tied]
    return sorted((options for options in found if len(options) > 1), key=lambda options: min(options[0]))


def fixed_units(chooser: Chooser, scopes: Sequence[Scope], free: Sequence[Options]) -> dict[str, int]:
    """Tells how many units the groups keep that are not up for choice: what their stated ratios leave."""
    fixed = [scope if scope.fixed else attrs.evolve(scope, ratio=0.0) for scope in scopes]
    chosen = {name for options in free for name in options[0]}
    return {name: count for name, count in chooser.counts(fixed).units.items() if name not in chosen}


def _sizes(name: str, candidate: Candidate) -> Options:
    present = len(candidate.present)
    allowed = {candidate.limits.count(wanted, candidate.size, present) for wanted in range(1, present + 1)}
    return _thinned([{name: count * candidate.blocks} for count in sorted(allowed | {present}, reverse=True)])


def _thinned(sizes: Sequence[Mapping[str, int]]) -> Options:
    """Keeps the first, the last, and evenly spaced ones in between."""
    if len(sizes) <= MOST:
        return tuple(sizes)
    last = len(sizes) - 1
    return tuple(sizes[place] for place in sorted({round(step * last / (MOST - 1)) for step in range(MOST)}))

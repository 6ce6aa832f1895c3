"""Which of several branches a program can't go on without, where it can't go on without all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from prunekit_core.errors import RehearsalError, first_reasons

_T = TypeVar("_T")

MOST = 4
"""So many are looked for: each takes some rehearsals."""


def blaming(
    draft: Callable[[Sequence[str]], _T], names: Sequence[str], obstacles: Callable[[], Mapping[str, str]]
) -> _T:
    """Takes branches out; where that is refused, the error names those at fault.

    Args:
        draft: Takes some of them out; raises `RehearsalError` where the program can't go on without them.
        names: The branches.
        obstacles: Says, by name, why branches can't go, as far as that is known without a rehearsal.

    Returns:
        What ``draft`` returned for all of them.

    Raises:
        RehearsalError: They can't go.
    """
    try:
        return draft(names)
    except RehearsalError as error:
        raise _explained(draft, list(names), obstacles, error) from error


def _explained(
    draft: Callable[[Sequence[str]], object],
    names: list[str],
    obstacles: Callable[[], Mapping[str, str]],
    error: RehearsalError,
) -> RehearsalError:
    tried: dict[frozenset[str], RehearsalError | None] = {frozenset(names): error}

    def refusal(some: Sequence[str]) -> RehearsalError | None:
        key = frozenset(some)
        if key not in tried:
            tried[key] = None
            try:
                draft(some)
            except RehearsalError as found:
                tried[key] = found
        return tried[key]

    if refusal([]) is not None:  # it isn't for the branches
        return error
    if len(names) < 2:
        error.branches = tuple(names)
        return error
    known = obstacles()
    faults: dict[tuple[str, ...], str] = {(name,): known[name] for name in names if name in known}
    most = max(MOST, len(faults))
    left = [name for name in names if (name,) not in faults]
    again = refusal(left) if faults else error
    while again is not None and len(faults) < most:
        few, why = _smallest(refusal, left, again)
        faults[few] = why
        left.remove(few[-1])
        again = refusal(left)
    for few in [*faults] if again is None else ():  # a part of a layer may go only where the rest of it does
        more = [name for name in names if name in left or name == few[-1]]
        if len(faults) > 1 and refusal(more) is None:
            left = more
            del faults[few]
    return _error(error.headline, faults, left if again is None else [])


def _error(headline: str, faults: Mapping[tuple[str, ...], str], left: Sequence[str]) -> RehearsalError:
    """Words the error, with what is known to go without those at fault."""
    named = {" with ".join(few): why for few, why in faults.items()}
    reasons = [why if len(named) == 1 else f"{name}: {why}" for name, why in named.items()]
    hint = f"leave {'it' if len(named) == 1 else 'them'} out"
    leave = tuple(few[-1] for few in faults)
    if any(len(few) > 1 for few in faults):
        hint = f"leave {', '.join(leave)} out"
    if left:
        hint += f": the other {len(left)} can go" if len(left) > 1 else f": {left[0]} can go"
    error = RehearsalError(headline, where=", ".join(named), why=first_reasons(reasons, MOST), hint=hint)
    error.branches = leave
    return error


def _smallest(
    refusal: Callable[[Sequence[str]], RehearsalError | None], names: Sequence[str], error: RehearsalError
) -> tuple[tuple[str, ...], str]:
    """Finds few branches that can't go together, of some that can't.

    Each of those found is the last of the shortest run, from the first on, that can't go with those found before it.

    Args:
        refusal: Says why some branches can't go; None where they can.
        names: The branches.
        error: Why they can't go.

    Returns:
        Those found, in their order, and why they can't go.
    """
    found: list[str] = []
    left = list(names)
    while True:
        alone = refusal(found) if found else None
        if alone is not None:
            return tuple(found), alone.why
        if not left:
            return tuple(found), error.why
        enough, count = 0, len(left)
        while count - enough > 1:
            middle = (enough + count) // 2
            again = refusal([*left[:middle], *found])
            if again is None:
                enough = middle
            else:
                count, error = middle, again
        found.insert(0, left[count - 1])
        del left[count - 1 :]

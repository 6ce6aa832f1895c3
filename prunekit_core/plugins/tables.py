"""What all plugins registered, as tables: of every key the entry of the highest rank, unless two plugins have it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import attrs

from prunekit_core.plugins.entries import Claim, Contest, Entry, key_text
from prunekit_core.plugins.hookspecs import HOOKS

LAYER_TYPES = "prunekit_layer_types"
REPLACEMENTS = "prunekit_replacements"


@attrs.frozen
class Tables:
    """Everything that is registered.

    Attributes:
        entries: Hook to key to entry.
        contests: Hook to key to the contest for it; such a key has no entry.
        sources: Class of modules to its replacement, or to the contest for it.
    """

    entries: Mapping[str, Mapping[Any, Entry]]
    contests: Mapping[str, Mapping[Any, Contest]]
    sources: Mapping[type, Entry | Contest]


def tables_of(claims: Iterable[Claim]) -> Tables:
    """Makes the tables of what plugins registered."""
    entries: dict[str, dict[Any, Entry]] = {hook: {} for hook in HOOKS}
    contests: dict[str, dict[Any, Contest]] = {hook: {} for hook in HOOKS}
    ordered = sorted(claims, key=lambda claim: (claim.entry.owner.rank, claim.entry.owner.name))
    for (hook, key), rivals in _by_key(ordered).items():
        found = _highest(hook, key, rivals)
        if isinstance(found, Contest):
            contests[hook][key] = found
        else:
            entries[hook][key] = found
    return Tables(entries, contests, _sources(entries[REPLACEMENTS].values(), contests[REPLACEMENTS].values()))


def _by_key(claims: Iterable[Claim]) -> dict[tuple[str, Any], list[Entry]]:
    """Brings together the entries that are for one key, in ascending order of rank.

    A layer type for a class and one for its dotted name are for one key, which is the class.
    """
    found: dict[tuple[str, Any], list[Entry]] = {}
    classes: dict[str, list[type]] = {}
    named: list[Claim] = []
    for claim in claims:
        if claim.hook == LAYER_TYPES and isinstance(claim.key, str):
            named.append(claim)
            continue
        if claim.hook == LAYER_TYPES and (claim.hook, claim.key) not in found:
            classes.setdefault(key_text(claim.key), []).append(claim.key)
        found.setdefault((claim.hook, claim.key), []).append(claim.entry)
    for claim in named:
        for key in classes.get(claim.key, [claim.key]):
            found.setdefault((claim.hook, key), []).append(claim.entry)
    for rivals in found.values():
        rivals.sort(key=lambda entry: entry.owner.rank)
    return found


def _highest(hook: str, key: Any, rivals: list[Entry]) -> Entry | Contest:
    """Returns the entry of the highest rank, with those that it overrides, or a contest."""
    if len(rivals) == 1:
        return rivals[0]
    top = [rival for rival in rivals if rival.owner.rank == rivals[-1].owner.rank]
    if len(top) > 1:
        return Contest(hook, key, tuple(top))
    return attrs.evolve(top[0], overrides=tuple(rival.owner.name for rival in rivals[:-1]))


def _sources(entries: Iterable[Entry], contests: Collection[Contest]) -> dict[type, Entry | Contest]:
    """Finds the replacement for every class that has any: of one plugin's, the one that it registered first."""
    contested = {id(rival): contest for contest in contests for rival in contest.rivals}
    rivals = [rival for contest in contests for rival in contest.rivals]
    by_source: dict[type, dict[str, Entry]] = {}
    for entry in sorted((*entries, *rivals), key=lambda entry: entry.owner.rank):
        by_source.setdefault(entry.value.source, {}).setdefault(entry.owner.name, entry)
    found: dict[type, Entry | Contest] = {}
    for source, owned in by_source.items():
        top = list(owned.values())[-1]
        found[source] = contested.get(id(top)) or _highest(REPLACEMENTS, source, list(owned.values()))
    return found

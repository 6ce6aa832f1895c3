"""Plans that take branches out of a model, proven by running what is left on the shadow."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs
from torch import nn

from prunekit_core.algebra import layout as layouts
from prunekit_core.algebra.layout import Kept
from prunekit_core.branches.branch import Branch, named_branches
from prunekit_core.branches.culprits import blaming
from prunekit_core.branches.decoding import DECODING
from prunekit_core.branches.silence import silencing
from prunekit_core.branches.surgery import Surgery, obstacles, operate
from prunekit_core.branches.unneeded import without_unneeded
from prunekit_core.collector import collection_paused
from prunekit_core.errors import ArgumentError, RehearsalError, nearest
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.moving_averages import mirrored_names, mirrored_stubs, one_sided
from prunekit_core.modules.edits import Decision, exchanged_by
from prunekit_core.modules.entries import Entries
from prunekit_core.modules.renaming import tied_in
from prunekit_core.plans.plan import Plan
from prunekit_core.plans.pricing import Costs, Prices, Room
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.rules import Elementwise
from prunekit_core.rehearse.comparison import Drift, Mismatch
from prunekit_core.rehearse.entries import entries_that_leave
from prunekit_core.rehearse.make_plan import Drafts, witnessed
from prunekit_core.rehearse.places import ancestors
from prunekit_core.rehearse.rehearsal import Stage
from prunekit_core.rehearse.ties import Reselect


@collection_paused()
def draft_without(
    model: nn.Module,
    drafts: Drafts,
    branches: Iterable[Branch | str],
    kept: Mapping[str, tuple[int, ...]] | None = None,
    reselect: Reselect | None = None,
    *,
    keep_names: bool = False,
    deleted: Collection[str] = (),
) -> Plan:
    """Makes a proven plan without some branches, from the model as it was at analysis.

    Args:
        model: The model as it is now.
        drafts: What makes plans for it.
        branches: The branches that go, or their names.
        kept: Kept units per group, as numbered at analysis; groups of which nothing is left are passed over.
        reselect: Chooses units anew when the program needs another number; None if the choice is fixed.
        keep_names: Whether entries of lists of modules (layers in a ``ModuleList``) stay in them when they compute
            nothing any more, so that those behind them aren't numbered anew.
        deleted: Paths of entries that have left already.

    Raises:
        ArgumentError: The model has no such branch, or no such group.
        RehearsalError: The program can't be expressed without them, or not with these units.
    """
    names = [one if isinstance(one, str) else one.name for one in branches]
    if not names:
        return drafts.draft(model, kept or {}, reselect)
    whole, drafts = drafts, drafts.for_branches()
    analysis, registry = drafts.analysis, drafts.registry
    strange = next((name for name in kept or {} if name not in analysis.groups), None)
    if strange is not None:
        raise ArgumentError("The model has no such group.", where=repr(strange), hint=nearest(strange, analysis.groups))
    analysis.shadow.rewind()  # an earlier rehearsal may have left its cut on it
    chosen = named_branches(drafts.branches(), names)
    surgery = operate(analysis, registry.op_rules, chosen)
    _check_copies(analysis, surgery)
    proof = _proven(analysis, registry, chosen, surgery, deleted, keep_names=keep_names)
    surgery, left_over = proof.surgery, proof.left
    analysis.shadow.rewind()
    stubs, gone = mirrored_stubs(analysis.copies, surgery.stubs), mirrored_names(analysis.copies, surgery.gone)
    tied = tied_in(analysis.shadow.module, Decision(stubs=stubs).renaming, gone)
    _check_deleted(surgery, left_over.entries, deleted)
    smaller = whole.without(left_over, model)
    smaller.knowledge.uncut = proof.steady
    left = {
        name
        for parameter in surgery.analysis.parameters.values()
        for dim in parameter.dims
        for name in layouts.groups_of(dim)
    }
    plan = smaller.draft(model, {name: units for name, units in (kept or {}).items() if name in left}, reselect)
    for tie in smaller.knowledge.ties:
        whole.knowledge.add_tie(tie)
    around = {path for stub in stubs for path in ancestors(stub.module)}
    source = _Source(drafts, smaller)
    prices = Prices(source, plan.kept)
    prices.settle(source)  # while the source is there
    return attrs.evolve(
        plan,
        absent=surgery.absent,
        stubs=(*stubs, *plan.stubs),
        gone=(*gone, *plan.gone),
        tied=tied,
        entries=_both(witnessed(left_over.entries, whole.names(model)), plan.entries),
        silent=silencing(analysis, registry.op_rules, chosen, surgery.gone),
        sources=tuple(sorted({**dict(whole.sources(model, around)), **dict(plan.sources)}.items())),
        costs=prices,
        sizes={name: Room(math.prod(p.shape), p.itemsize, p.buffer) for name, p in analysis.parameters.items()},
    )


def draft_further(
    model: nn.Module,
    drafts: Drafts,
    applied: Plan,
    branches: Iterable[str],
    kept: Mapping[str, tuple[int, ...]] | None = None,
    reselect: Reselect | None = None,
    *,
    keep_names: bool = False,
) -> Plan:
    """Makes a proven plan without some branches, from the model as it was at analysis, on top of earlier cuts.

    Args:
        model: The model as it is now.
        drafts: What makes plans for it.
        applied: The plan from the model as it was at analysis to the model as it is now.
        branches: Names of the branches that go; those that are gone already stay so.
        kept: Kept units per group, as numbered at analysis, a subset of those still there.
        reselect, keep_names: See `draft_without`.

    Raises:
        ArgumentError: The model has no such branch, or no such group.
        RehearsalError: The program can't be expressed without them, or not with these units.
    """
    names, deleted = [*applied.absent, *branches], sorted(applied.entries.deleted())
    whole = {**applied.kept, **(kept or {})}
    return draft_without(model, drafts, names, whole, reselect, deleted=deleted, keep_names=keep_names)


def draft_blaming(
    model: nn.Module,
    drafts: Drafts,
    applied: Plan,
    branches: Iterable[str] | str,
    kept: Mapping[str, tuple[int, ...]] | None = None,
    reselect: Reselect | None = None,
    *,
    keep_names: bool = False,
) -> Plan:
    """Does what `draft_further` does; where the program can't go on without all, the error names those at fault."""
    names = [branches] if isinstance(branches, str) else list(branches)

    def why_alone() -> dict[str, str]:
        found = drafts.for_branches()
        return obstacles(found.analysis, found.registry.op_rules, named_branches(found.branches(), names))

    def draft(some: Sequence[str]) -> Plan:
        return draft_further(model, drafts, applied, some, kept, reselect, keep_names=keep_names)

    return blaming(draft, names, why_alone)


def analysis_after(drafts: Drafts, plan: Plan) -> Analysis:
    """Returns what is known about a model without the branches that a plan removes, all units of the rest there.

    Args:
        drafts: What makes plans for it.
        plan: A plan that was made with it, from the model as it was at analysis.
    """
    if not plan.absent:
        return drafts.analysis
    found = drafts.for_branches()
    chosen = named_branches(found.branches(), plan.absent)
    return operate(found.analysis, found.registry.op_rules, chosen, plan.stubs).analysis


def _check_copies(analysis: Analysis, surgery: Surgery) -> None:
    """Raises `RehearsalError` where a branch goes, and that of a momentum copy that runs as well stays."""
    found = one_sided(analysis.copies, surgery.stubs)
    if found is not None:
        copy, path = found
        raise RehearsalError(
            "The program can't go on without these branches.",
            where=path,
            why=f"{copy.path} follows {copy.original} by a moving average, and only one of them would lose it",
            hint="name the branch of the other one, too",
        )


@attrs.frozen(eq=False)
class _Proof:
    """Branches that can be taken out, as a replay has shown.

    Attributes:
        surgery: What is exchanged.
        left: What is known of the model that is left, with the entries that leave their lists.
        steady: Whether no number in the program drifted.
    """

    surgery: Surgery
    left: Analysis
    steady: bool


def _proven(
    analysis: Analysis,
    registry: Registry,
    chosen: Sequence[Branch],
    surgery: Surgery,
    deleted: Collection[str],
    *,
    keep_names: bool,
) -> _Proof:
    """Replays what is left.

    Where the program needs a module that would go, such as a layer in a list, only what is in it goes; but not where
    fewer parameters go then, or more than operations on single elements runs on.

    Raises:
        RehearsalError: It is another program.
    """
    renaming = Decision(stubs=surgery.stubs).renaming
    if not (analysis.copies or tied_in(analysis.shadow.module, renaming, surgery.gone)):
        found = _without_entries(analysis, surgery, registry, deleted, keep_names=keep_names)
        if found is not None:
            return found
    mismatch, drifts = _replayed(surgery.analysis, registry)
    if mismatch is None:
        return _Proof(surgery, surgery.analysis, not drifts)
    around = {stub.module for stub in surgery.stubs if analysis.shadow.modules[stub.module]._modules}
    if around:
        analysis.shadow.rewind()
        with contextlib.suppress(RehearsalError):
            inner = operate(analysis, registry.op_rules, chosen, leave=around)
            _check_copies(analysis, inner)
            saves = inner.gone == surgery.gone and not any(_costly(analysis, registry, surgery, inner))
            again, drifts = _replayed(inner.analysis, registry) if saves else (mismatch, [])
            if again is None:
                return _Proof(inner, inner.analysis, not drifts)
    trace = surgery.analysis.recordings[mismatch.recording].trace
    when = "in a call that is given the cache of an earlier one: " if trace.label == DECODING else ""
    raise RehearsalError(
        "The program can't go on without these branches.",
        where=", ".join(surgery.absent),
        why=f"{when}{trace.operations[mismatch.operation].site}: {mismatch.why}",
        hint="leave them out",
    )


def _replayed(analysis: Analysis, registry: Registry) -> tuple[Mismatch | None, list[Drift]]:
    return Stage(analysis, registry, {}).replay({})


def _costly(analysis: Analysis, registry: Registry, outer: Surgery, inner: Surgery) -> Iterator[bool]:
    """Tells of each operation that only one way of taking branches out removes whether it is more than cheap."""
    for position, recording in enumerate(analysis.recordings):
        trace = recording.trace
        for index in outer.removed[position] - inner.removed[position]:
            rule = registry.op_rules.find(trace.operations[index].op)
            yield not trace.is_view(index) and (rule is None or not isinstance(rule.zeros, Elementwise))


def _without_entries(
    whole: Analysis, surgery: Surgery, registry: Registry, deleted: Collection[str], *, keep_names: bool
) -> _Proof | None:
    """Proves what is left without the entries that may leave their lists; None where none may."""
    left, shadow = surgery.analysis, surgery.analysis.shadow
    proven: dict[Entries, _Proof] = {}
    # a program may make something for each entry before they run: a mask, a layer of a cache
    fewer = functools.cache(lambda: without_unneeded(whole, surgery))

    def trial(entries: Entries) -> Mismatch | None:
        found = attrs.evolve(left, entries=entries)
        mismatch, drifts = _replayed(found, registry)
        if mismatch is not None and fewer() is not left:
            found = attrs.evolve(fewer(), entries=entries)
            again, drifts = _replayed(found, registry)
            mismatch = mismatch if again is not None else None
        if mismatch is None:
            proven[entries] = _Proof(surgery, found, not drifts)
        shadow.rewind()  # what leaves next is looked for in whole lists
        return mismatch

    shadow.rewind()
    entries = entries_that_leave(shadow.modules, surgery.stubs, trial, deleted, keep_names=keep_names)
    return proven.get(entries)


def _check_deleted(surgery: Surgery, entries: Entries, deleted: Collection[str]) -> None:
    """Raises `RehearsalError` where an entry that has left its list already would have to be in it."""
    is_exchanged = exchanged_by(surgery.stubs)
    there = (path for path in deleted if not is_exchanged(path.rpartition(".")[0]))  # else its whole list goes
    lost = next((path for path in there if path not in entries.deleted()), None)
    if lost is not None:
        raise RehearsalError(
            "The program can't go on without these branches.",
            where=", ".join(surgery.absent),
            why=f"{lost} has left its list already, and without them the program needs an entry there",
            hint="leave them out",
        )


def _both(layers: Entries, experts: Entries) -> Entries:
    """Returns the entries that leave as their branches are gone, and those that leave as units do."""
    return Entries((*layers.deletions, *experts.deletions), (*layers.changes, *experts.changes))


class _Source:
    """What a model costs before a cut, and what is left of it after."""

    def __init__(self, whole: Drafts, left: Drafts) -> None:
        self._whole, self._left = whole, left

    def costs(self, kept: Kept) -> Costs:
        before, after = self._whole.costs({}), self._left.costs(kept)
        return {name: (before[name][0], after[name][1]) for name in before if name in after}

"""Which branches may go beside units, and what the model loses without each: a short list is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from prunekit_core.branches.branch import Branch
from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.choose.criterion import criterion_of
from prunekit_core.graph.graph import Graph
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.depth.leaving import Item, items_of, scores_of
from prunekit_plugins.depth.nesting import Offer
from prunekit_plugins.depth.present import PresentScorer
from prunekit_plugins.depth.settings import DepthSettings
from prunekit_plugins.depth.stays import open_branches, protected_branches

SHORT = 32
"""Branches that are measured, at least; of more those that turn their sums least for what they save."""
_ENOUGH = 2.0
"""The list is long enough when its branches would save this many times what has to be saved."""
_BRIEF = "block_influence"
"""The criterion that makes the list: one pass over the data shows all branches."""


@attrs.frozen(eq=False)
class Offers:
    """The branches that may go.

    Attributes:
        offers: Those with a damage that is known.
        left: Name of each other branch to the reason why it stays.
    """

    offers: tuple[Offer, ...]
    left: Mapping[str, str]


def possible_branches(graph: Graph, settings: DepthSettings) -> tuple[list[str], dict[str, str]]:
    """Lists the branches that settings let go, and returns why others stay, by name.

    Args:
        graph: The analysed model.
        settings: What is asked for.
    """
    scorer = PresentScorer(graph, _criterion(graph, _BRIEF), None)
    return open_branches(graph, settings, scorer, protected_branches(graph, settings.ignored_layers))


def possible_items(graph: Graph, settings: DepthSettings) -> tuple[list[Item], dict[str, str]]:
    """Lists what settings let go, branches or whole layers, and returns why other branches stay, by name."""
    names, left = possible_branches(graph, settings)
    items, apart = items_of(graph, layers=settings.uniform)
    open_, found = {*names, *graph.applied.absent}, []
    left.update({name: why for name, why in apart.items() if name in open_})
    for item in items.values():
        held = next((name for name in item.branches if name not in open_), None)
        if held is not None:
            left.update({name: f"{held}: {left[held]}" for name in item.branches if name in open_})
        elif not set(item.branches) <= set(graph.applied.absent):
            found.append(item)
    return found, left


def measured_offers(graph: Graph, settings: DepthSettings, batches: Batches, saved: Callable[[str], float]) -> Offers:
    """Measures what the model loses without each branch that may go.

    That is the change of the outputs with the branch alone switched off, or what the criterion says that was asked for.
    Of very many branches a short list is measured: those that turn their sums least for what they save.

    Args:
        graph: The analysed model; branches that were taken out through it stay so.
        settings: What is asked for.
        batches: Calibration data.
        saved: Name of a branch to what it saves, as a part of what has to be saved.
    """
    items, left = possible_items(graph, settings)
    useful = {item.name: sum(map(saved, item.branches)) for item in items}
    _keep(left, (item for item in items if useful[item.name] <= 0), "it saves nothing of what is asked for")
    items = [item for item in items if useful[item.name] > 0]
    if settings.branch_importance is None and len(items) > SHORT:
        brief = _scores(graph, _criterion(graph, _BRIEF), batches, items, left)
        chosen = _short(brief, useful)
        few = "others turn their sums less for what they save"
        _keep(left, (item for item in items if item.name in brief and item.name not in chosen), few)
        items = [item for item in items if item.name in chosen]
    damages = _scores(graph, settings.criterion(graph.registry, calibrated=True), batches, items, left)
    found = tuple(Offer(item.branches, max(0.0, damages[item.name])) for item in items if item.name in damages)
    return Offers(found, left)


def _keep(left: dict[str, str], items: Iterable[Item], why: str) -> None:
    left.update({name: why for item in items for name in item.branches})


def offers_around(
    graph: Graph, settings: DepthSettings, batches: Batches, offers: Offers, absent: Sequence[str]
) -> Offers:
    """Measures branches anew beside some that go: damages of branches don't add up, and are made linear around these.

    The damages of those that go are scaled to what the model loses without all of them; that of another one is what it
    loses more without that one as well.

    Args:
        graph: The analysed model.
        settings: What is asked for.
        batches: Calibration data.
        offers: The branches that may go.
        absent: Names of those that go.
    """
    scorer = PresentScorer(graph, settings.criterion(graph.registry, calibrated=True), batches)
    off = [name for name in absent if name not in graph.applied.absent]
    known = {one.name: one for one in graph.branches()}
    others = [
        Item(offer.branches[0], offer.branches, len(offer.branches) > 1)
        for offer in offers.offers
        if not any(name in absent or _is_in(known[name], known, absent) for name in offer.branches)
    ]
    together = scorer.scores(off[-1:], off[:-1])[off[-1]] or 0.0
    beside = {name: (one or 0.0) - together for name, one in scores_of(scorer, others, off).items()}
    apart = sum(offer.damage for offer in offers.offers if offer.branches[0] in absent)
    factor = together / apart if apart > 0 else 1.0
    changed = []
    for offer in offers.offers:
        name = offer.branches[0]
        damage = offer.damage * factor if name in absent else max(0.0, beside.get(name, offer.damage))
        changed.append(attrs.evolve(offer, damage=damage))
    return attrs.evolve(offers, offers=tuple(changed))


def _is_in(branch: Branch, known: Mapping[str, Branch], others: Sequence[str]) -> bool:
    return any(branch.is_part_of(known[name]) for name in others)


def _short(scores: Mapping[str, float], saved: Mapping[str, float]) -> set[str]:
    """Chooses the branches with the lowest scores for what they save."""
    chosen, total = set[str](), 0.0
    for name in sorted(scores, key=lambda one: (scores[one] / saved[one], one)):
        if len(chosen) >= SHORT and total >= _ENOUGH:
            break
        chosen.add(name)
        total += saved[name]
    return chosen


def _scores(
    graph: Graph, criterion: BranchCriterion, batches: Batches, items: Sequence[Item], left: dict[str, str]
) -> dict[str, float]:
    found = scores_of(PresentScorer(graph, criterion, batches), items)
    silent = (item for item in items if found[item.name] is None)
    _keep(left, silent, "the criterion has nothing to say about it")
    return {name: one for name, one in found.items() if one is not None}


def _criterion(graph: Graph, name: str) -> BranchCriterion:
    found: object = criterion_of(name, graph.registry)
    assert isinstance(found, BranchCriterion)
    return found

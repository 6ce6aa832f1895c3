"""Which branches may go beside units, and what the model loses without each: a short list is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from prunekit_core.choose.branch_group import BranchCriterion
from prunekit_core.choose.criterion import criterion_of
from prunekit_core.graph.graph import Graph
from prunekit_plugins.calibration.batches import Batches
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
    names, left = possible_branches(graph, settings)
    useful = {name: saved(name) for name in names}
    left.update({name: "it saves nothing of what is asked for" for name, part in useful.items() if part <= 0})
    names = [name for name in names if useful[name] > 0]
    if settings.branch_importance is None and len(names) > SHORT:
        brief = _scores(graph, _criterion(graph, _BRIEF), batches, names, left)
        chosen = _short(brief, useful)
        left.update({name: "others turn their sums less for what they save" for name in brief if name not in chosen})
        names = [name for name in names if name in chosen]
    damages = _scores(graph, settings.criterion(graph.registry, calibrated=True), batches, names, left)
    return Offers(tuple(Offer((name,), max(0.0, damages[name])) for name in names if name in damages), left)


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
    others = [name for offer in offers.offers for name in offer.branches if name not in absent]
    others = [name for name in others if not any(known[name].is_part_of(known[outer]) for outer in absent)]
    together = scorer.scores(off[-1:], off[:-1])[off[-1]] or 0.0
    beside = {name: (one or 0.0) - together for name, one in scorer.scores(others, off).items()}
    apart = sum(offer.damage for offer in offers.offers if offer.branches[0] in absent)
    factor = together / apart if apart > 0 else 1.0
    changed = []
    for offer in offers.offers:
        name = offer.branches[0]
        damage = offer.damage * factor if name in absent else max(0.0, beside.get(name, offer.damage))
        changed.append(attrs.evolve(offer, damage=damage))
    return attrs.evolve(offers, offers=tuple(changed))


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
    graph: Graph, criterion: BranchCriterion, batches: Batches, names: Sequence[str], left: dict[str, str]
) -> dict[str, float]:
    found = PresentScorer(graph, criterion, batches).scores(names)
    left.update({name: "the criterion has nothing to say about it" for name, one in found.items() if one is None})
    return {name: one for name, one in found.items() if one is not None}


def _criterion(graph: Graph, name: str) -> BranchCriterion:
    found: object = criterion_of(name, graph.registry)
    assert isinstance(found, BranchCriterion)
    return found

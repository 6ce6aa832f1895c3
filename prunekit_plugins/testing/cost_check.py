"""Proving a cost model: what it predicts for a cut is what it says about the model that was cut."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from prunekit_core.algebra.layout import Kept
from prunekit_core.graph.graph import Graph
from prunekit_core.groups.analysis import Analysis
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.testing.failure import failing, require
from prunekit_plugins.testing.network import small_net

Cost = Callable[[Analysis, Kept], float]


def check_cost(cost: Cost, *, exact: bool = True, registry: Registry | None = None) -> None:
    """Proves a cost model on a small network.

    The cost must be a finite number that isn't negative, the same every time, the same whether a whole group is
    listed or left out, and must never grow when one more unit goes. With ``exact`` the cost that is predicted for a
    cut must be the cost of the model once it was cut.

    Args:
        cost: The cost model, ``(analysis, kept) -> float``.
        exact: False for models whose prediction is an estimate (latency).
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the cost model raises.
    """
    require(callable(cost), "check_cost", "a function (analysis, kept) -> float", cost)
    with failing("the cost model", cost):
        _check(cost, exact, registry)


def _check(cost: Cost, exact: bool, registry: Registry | None) -> None:
    net, batch = small_net()
    graph = Graph.of(net, batch, registry=registry)
    analysis = graph.analysis
    whole = cost(analysis, {})
    number = isinstance(whole, int | float) and not isinstance(whole, bool)
    assert number, f"the cost is {whole!r}, not a number"
    assert math.isfinite(whole), f"the cost of the whole model is {whole}"
    assert whole >= 0, f"the cost of the whole model is {whole}"
    assert cost(analysis, {}) == whole, "asked again, the cost of the whole model is another one"
    everything = {name: tuple(range(group.size)) for name, group in analysis.groups.items()}
    listed = cost(analysis, everything)
    assert listed == whole, f"with every unit listed as kept the cost is {listed}, with nothing listed {whole}"
    lowest = _check_every_group(cost, analysis, whole)
    assert lowest < whole, "no cut of any group lowers the cost"
    if exact:
        for name, group in analysis.groups.items():
            _check_prediction(cost, {name: tuple(range(1, group.size))}, registry)
        _check_prediction(cost, {n: tuple(range(0, g.size, 2)) for n, g in analysis.groups.items()}, registry)


def _check_every_group(cost: Cost, analysis: Analysis, whole: float) -> float:
    """Removes units one by one, from each group alone and from all of them; returns the lowest cost seen."""
    cuts = [[name] for name in analysis.groups] + [list(analysis.groups)]
    lowest = whole
    for names in cuts:
        last = whole
        for count in range(max(analysis.groups[name].size for name in names) - 1, 0, -1):
            kept = {name: tuple(range(min(count, analysis.groups[name].size))) for name in names}
            found = cost(analysis, kept)
            assert found <= last, (
                f"the cost grows from {last} to {found} when a unit of {', '.join(names)} goes and {count} stay"
            )
            last = found
        lowest = min(lowest, last)
    return lowest


def _check_prediction(cost: Cost, kept: Kept, registry: Registry | None) -> None:
    net, batch = small_net()
    graph = Graph.of(net, batch, registry=registry)
    predicted = cost(graph.analysis, kept)
    sizes = {name: group.size for name, group in graph.analysis.groups.items()}
    graph.remove({name: [u for u in range(sizes[name]) if u not in units] for name, units in kept.items()})
    fresh = Graph.of(copy.deepcopy(net), batch, registry=registry)
    found = cost(fresh.analysis, {})
    assert math.isclose(predicted, found, rel_tol=1e-9), (
        f"without some units of {', '.join(kept)} the cost is {found}, predicted was {predicted}"
    )

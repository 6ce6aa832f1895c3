"""Serving profiles: what a model has to look like where it is to be served, as arguments of `prune`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.choose.demands import Demands
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.graph.graph import Graph
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.registry import Registry, default_registry


@attrs.frozen
class ServingProfile:
    """What an engine asks of one model.

    Attributes:
        uniform: Whether layers of one structure must have the same sizes.
        head_dims: Whether heads may get narrower.
        free_outputs: Outputs that may lose units, because whoever serves the model doesn't read them.
        fixed: Layers whose sizes stay: nothing can say others.
        round_to: What sizes have to be multiples of.
        notes: Lines for the report.
        ties: Names of groups that have to keep the same number of units where ``uniform`` holds: one number says all
            their sizes.
        counts: Called where whole heads may go: finds out how many the configuration can say, group to the possible
            numbers, ascending. A group that can't lose any has its own size alone; one that isn't there may keep any
            number. None where that holds for all.
        check: Called with the graph and the plan before anything is changed; raises `ArgumentError` where the engine
            wouldn't take what is left. None where sizes alone decide.
    """

    uniform: bool = False
    head_dims: bool = True
    free_outputs: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    round_to: int = 1
    notes: tuple[str, ...] = ()
    ties: tuple[frozenset[str], ...] = ()
    counts: Callable[[], Mapping[str, tuple[int, ...]]] | None = attrs.field(default=None, eq=False)
    check: Callable[[Graph, Plan], None] | None = attrs.field(default=None, eq=False)

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of `prune`: what is given, with what the profile asks for where it says nothing.

        Layers whose sizes stay may still leave as a whole; sizes are multiples of both numbers. What follows from the
        profile is told apart from what was given, so that reports and errors can say so.
        """
        own: dict[str, Any] = {"uniform": self.uniform, "prune_head_dims": self.head_dims}
        if self.free_outputs:
            own["free_outputs"] = self.free_outputs
        found = {**own, **given}
        without: dict[str, Any] = {"uniform": False, "prune_head_dims": True}
        instead = {name: value for name, value in without.items() if name not in given and found[name] != value}
        if given.get("align") is None:
            stated = given.get("round_to")
            found["round_to"] = math.lcm(stated or 1, self.round_to)
            instead |= {"round_to": stated} if found["round_to"] != (stated or 1) else {}
        asked = {name: found[name] for name in instead}
        counts = self.counts() if self.counts is not None and given.get("prune_num_heads") else {}
        source = _as_given(given.get("serve"))
        return {**found, "demands": Demands(source, self.fixed, asked, instead, self.ties, counts)}


def _as_given(serve: Any) -> str:
    """Words an argument ``serve`` as it was given, a function by its name."""
    if isinstance(serve, str):
        return f'serve="{serve}"'
    return f"serve={dict(serve) if isinstance(serve, Mapping) else getattr(serve, '__name__', type(serve).__name__)}"


Profiler = Callable[..., ServingProfile]
"""Finds out what an engine asks of a model: ``(model, example_inputs, registry)`` to its profile."""

Served = str | Mapping[str, Any] | Profiler
"""Where a model is served: the name of an engine, a table with the ``name`` and its options, or a function."""

LoadTest = Callable[[Path], "object | None"]
"""Tries a pruned model in an engine: its folder to what was compared, in words; None where it isn't installed."""


@attrs.frozen
class ServingEngine:
    """An engine that serves models; called, it finds out what it asks of a model.

    Attributes:
        profile: Finds that out: ``(model, example_inputs, registry)`` to a `ServingProfile`.
        version: The version of the engine for which that was found to be true.
        load_test: Loads the folder of a pruned model in the engine, and compares what it computes with what PyTorch
            computes. It returns what was compared (``str`` of it is shown), or None where the engine isn't installed,
            and raises a `PrunekitError` where they differ. None for an engine without such a test.
        options: Names of the options that it takes, keyword arguments of ``profile``.
    """

    profile: Profiler
    version: str = ""
    load_test: LoadTest | None = None
    options: tuple[str, ...] = ()

    def __call__(
        self, model: nn.Module, example_inputs: Any, registry: Registry | None = None, **options: Any
    ) -> ServingProfile:
        """Finds out what the engine asks of a model."""
        return self.profile(model, example_inputs, registry, **options)


HOOK = "prunekit_serving_profiles"


def read_served(serve: Any, registry: Registry) -> tuple[Any, dict[str, Any]]:
    """Returns what an argument ``serve`` names, and the options for it.

    Raises:
        ArgumentError: No profile is registered under that name, or it doesn't take an option.
        PluginError: Only a broken plugin brings it.
    """
    options = dict(serve) if isinstance(serve, Mapping) else {}
    name = options.pop("name", None) if options else serve
    found = registry.named(HOOK, name) if isinstance(name, str) else name
    if not callable(found):
        raise ArgumentError(
            "serve is the name of a profile, or a function.",
            why=f"got {shown(serve)}",
            hint='serve="vllm", or with options serve={"name": "vllm", "tensor_parallel": 2}',
        )
    known = found.options if isinstance(found, ServingEngine) else ()
    strange = next((option for option in options if option not in known), None)
    if strange is not None:
        raise ArgumentError(
            f"The serving profile has no option {strange!r}.", where=str(name), hint=nearest(strange, known)
        )
    return found, options


def serving_profile(serve: Served, model: nn.Module, example_inputs: Any, registry: Registry | None) -> ServingProfile:
    """Finds out what an engine asks of a model.

    Args:
        serve: The name under which a plugin registers it, a table with the ``name`` and options, or a function.
        model: The model, not pruned.
        example_inputs: Its example inputs.
        registry: Where plugins are found; None for the default registry.

    Raises:
        ArgumentError: No profile is registered under that name, or it is none for this model.
        PluginError: The function of a plugin raised, or returned something else.
    """
    known = registry or default_registry()
    found, options = read_served(serve, known)
    blame = known.owners.blame(HOOK, found)
    with blame.blamed("A serving profile failed."):
        profile = found(model, example_inputs, registry, **options)
    if not isinstance(profile, ServingProfile):
        raise blame.error("A serving profile returned something else.", f"it returned {shown(profile)}")
    count = profile.counts
    if count is None:
        return profile

    def counts() -> Mapping[str, tuple[int, ...]]:
        with blame.blamed("A serving profile failed."):
            return count()

    return attrs.evolve(profile, counts=counts)

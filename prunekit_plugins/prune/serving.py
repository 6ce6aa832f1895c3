"""Serving profiles: what a model has to look like where it is to be served, as arguments of `prune`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn

from prunekit_core.arguments import shown
from prunekit_core.errors import ArgumentError, nearest
from prunekit_core.plugins.registry import Registry


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
    """

    uniform: bool = False
    head_dims: bool = True
    free_outputs: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    round_to: int = 1
    notes: tuple[str, ...] = ()

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of `prune`: what is given, with what the profile asks for where it says nothing.

        Layers that stay are joined, and sizes are multiples of both numbers.
        """
        own: dict[str, Any] = {"uniform": self.uniform, "prune_head_dims": self.head_dims}
        if self.free_outputs:
            own["free_outputs"] = self.free_outputs
        layers = [*(given.get("ignored_layers") or ()), *self.fixed]
        found = {**own, **given, "ignored_layers": layers or None}
        if given.get("align") is None:
            found["round_to"] = math.lcm(given.get("round_to") or 1, self.round_to)
        return found


Profiler = Callable[[nn.Module, Any, Registry | None], ServingProfile]
"""Finds out what an engine asks of a model: ``(model, example_inputs, registry)`` to its profile."""

PROFILES: dict[str, str] = {"transformers": "prunekit_plugins.integrations.serving:transformers_profile"}
"""Name to the module and the function that finds out what that engine asks for; imported when it is named."""


def profiler_of(serve: str | Profiler) -> Profiler:
    """Returns the function that a name stands for.

    Raises:
        ArgumentError: There is no profile of that name.
    """
    if not isinstance(serve, str):
        if not callable(serve):
            raise ArgumentError("serve is the name of a profile, or a function.", why=f"got {shown(serve)}")
        return serve
    if serve not in PROFILES:
        raise ArgumentError(f"There is no serving profile {serve!r}.", hint=nearest(serve, PROFILES))
    module, _, name = PROFILES[serve].partition(":")
    found: Profiler = getattr(importlib.import_module(module), name)
    return found

"""Proving a serving profile: what it asks for is a profile, the same every time, and a model can be pruned by it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from prunekit_core.errors import ArgumentError, NothingToPruneError, PrunekitError
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.prune import ServingEngine, ServingProfile, prune
from prunekit_plugins.prune.serving import Profiler
from prunekit_plugins.testing.failure import UnseenError, failing, require
from prunekit_plugins.testing.network import small_net
from prunekit_plugins.testing.state import State


def check_serving_profile(
    engine: Profiler, *, model: nn.Module | None = None, example: Any = None, registry: Registry | None = None
) -> None:
    """Proves what an engine asks of a model, on a small network or on a model of yours.

    It must be a `ServingProfile`, the same for the same model, and leave the model as it was; the model must be
    prunable with it. A `ServingEngine` must say its version. Its load test isn't run.

    Args:
        engine: The function ``(model, example_inputs, registry) -> ServingProfile``, or a `ServingEngine`.
        model: A model that the engine serves; None for a network of convolutions, linear layers and norms.
        example: Example inputs of ``model``.
        registry: Where rules are found; None for the default registry.

    Raises:
        AssertionError: One of the above doesn't hold, or the profile raises.
        UnseenError: The engine doesn't serve the network.
    """
    require(callable(engine), "check_serving_profile", "a function of a model that returns a ServingProfile", engine)
    if isinstance(engine, ServingEngine):
        assert isinstance(engine.version, str), f"the version is {engine.version!r}, not a text"
        assert engine.version, "the engine says no version"
        assert engine.load_test is None or callable(engine.load_test), f"the load test is {engine.load_test!r}"
    subject, inputs = small_net() if model is None else (model, example)
    with failing("the serving profile", engine):
        _check(engine, subject, inputs, registry, given=model is not None)


def _check(engine: Profiler, model: nn.Module, inputs: Any, registry: Registry | None, *, given: bool) -> None:
    before = State.of(model)
    try:
        found = engine(model, inputs, registry)
    except ArgumentError as error:
        raise _unseen(error, given=given) from error
    assert isinstance(found, ServingProfile), f"it returns {found!r}, not a ServingProfile"
    changed = before.changed(model)
    assert not changed, f"it changes the model: {changed}"
    assert engine(model, inputs, registry) == found, "asked again, it returns another profile"
    try:
        prune(copy.deepcopy(model), inputs, 0.5, serve=lambda *_: found, registry=registry)
    except NothingToPruneError as error:
        raise _unseen(error, given=given) from error


def _unseen(error: PrunekitError, *, given: bool) -> AssertionError:
    """Says that a model isn't for the engine: its own is a failure, the network of the check shows nothing."""
    if given:
        return AssertionError(f"the model isn't for the engine: {error.headline}")
    return UnseenError(f"the network of the check isn't for the engine; give model= ({error.headline})")

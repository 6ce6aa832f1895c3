"""The serving profile of Hugging Face's transformers: models that the stock class builds from a configuration."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from prunekit import Graph, Registry
from prunekit.plugin import ArgumentError, ServingProfile
from prunekit_plugins.integrations.config_heads import head_counts
from prunekit_plugins.integrations.config_limits import USUAL_MULTIPLE, config_limits
from prunekit_plugins.integrations.huggingface import library

INTERNAL = ("cache", "past_key_values", "encoder_last_hidden_state", "text_model_output", "vision_model_output")
"""Outputs that are handed back to the model, or that repeat what is inside it: they may lose units."""


def configured_profile(
    model: nn.Module,
    example_inputs: Any,
    registry: Registry | None = None,
    *,
    engine: str,
    multiple: int = USUAL_MULTIPLE,
) -> ServingProfile:
    """Finds out what the stock class asks of a model: one size for all layers, which its configuration can say.

    Args:
        model: A ``transformers.PreTrainedModel``, not pruned.
        example_inputs: Its example inputs.
        registry: Where plugins are found; None for the default registry.
        engine: Name of the profile.
        multiple: What sizes are multiples of where possible.

    Raises:
        ArgumentError: The model is not one of transformers'.
        PrunekitError: It can't be recorded.
    """
    if not isinstance(model, library().PreTrainedModel):
        raise ArgumentError(
            f'serve="{engine}" is for models of transformers.',
            why=f"got {type(model).__name__}",
            hint="leave serve out",
        )
    graph, free = recorded(model, example_inputs, registry)
    limits = config_limits(graph, example_inputs, multiple=multiple)
    note = f"the configuration can't say other sizes of what {', '.join(limits.fixed)} carry, which stay whole"
    notes = (note,) if limits.fixed else ()
    counts = functools.partial(head_counts, graph, example_inputs, limits)
    return ServingProfile(True, False, free, limits.fixed, limits.multiple, notes, limits.ties, counts)


def is_of_transformers(model: nn.Module) -> bool:
    """Whether a model is one of transformers', which needn't be installed."""
    return any(cls.__module__ == "transformers.modeling_utils" for cls in type(model).__mro__)


def recorded(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> tuple[Graph, tuple[str, ...]]:
    """Records a model of transformers; returns which of its outputs may lose units as well, which it heeds."""
    graph = Graph.of(model, example_inputs, modes=(False,), registry=registry)
    names = {name.split(".")[0] for name in graph.analysis.recordings[0].trace.names}
    free = tuple(name for name in INTERNAL if name in names) if names - set(INTERNAL) else ()
    if free:
        graph = Graph.of(model, example_inputs, modes=(False,), free_outputs=free, registry=registry)
    return graph, free

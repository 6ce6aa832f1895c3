"""The serving profile of Hugging Face's transformers: models that the stock class builds from a configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit import Graph, Registry
from prunekit.plugin import ArgumentError, ServingProfile
from prunekit_plugins.integrations.config_limits import config_limits
from prunekit_plugins.integrations.huggingface import library

INTERNAL = ("cache", "past_key_values", "encoder_last_hidden_state", "text_model_output", "vision_model_output")
"""Outputs that are handed back to the model, or that repeat what is inside it: they may lose units."""


def transformers_profile(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> ServingProfile:
    """Finds out what the stock class asks of a model: one size for all layers, which its configuration can say.

    Args:
        model: A ``transformers.PreTrainedModel``, not pruned.
        example_inputs: Its example inputs.
        registry: Where plugins are found; None for the default registry.

    Raises:
        ArgumentError: The model is not one of transformers'.
        PrunekitError: It can't be recorded.
    """
    if not isinstance(model, library().PreTrainedModel):
        raise ArgumentError(
            'serve="transformers" is for models of transformers.',
            why=f"got {type(model).__name__}",
            hint="leave serve out",
        )
    graph = Graph.of(model, example_inputs, modes=(False,), registry=registry)
    names = {name.split(".")[0] for name in graph.analysis.recordings[0].trace.names}
    free = tuple(name for name in INTERNAL if name in names) if names - set(INTERNAL) else ()
    if free:
        graph = Graph.of(model, example_inputs, modes=(False,), free_outputs=free, registry=registry)
    limits = config_limits(graph, example_inputs)
    note = f"the configuration can't say other sizes of what {', '.join(limits.fixed)} carry, which stay whole"
    notes = (note,) if limits.fixed else ()
    return ServingProfile(True, False, free, limits.fixed, limits.multiple, notes)

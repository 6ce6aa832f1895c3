"""What mlx-lm has no place for in a model, with what to do about it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prunekit_plugins.export.mlx.family import MlxFamily
from prunekit_plugins.export.mlx.refusal import UNIFORM
from prunekit_plugins.export.refusal import KEPT, OTHER
from prunekit_plugins.integrations.config_search import numbers_of, sizes_of
from prunekit_plugins.integrations.huggingface import empty_model

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
YARN = {"truncate": True, "attention_factor": None, "partial_rotary_factor": 1.0}
"""What mlx-lm computes yarn with, whatever the configuration says."""

Reason = tuple[str, str]
"""What has no place, and what to do."""


def reasons(model: Any, family: MlxFamily) -> Iterator[Reason]:
    """Yields what mlx-lm has no place for.

    Args:
        model: A model of transformers.
        family: Its family.
    """
    if getattr(model.config, "rope_parameters", None) is None:
        yield "transformers before version 5 words its positions otherwise", "a newer transformers"
    yield from _of_weights(model)
    if not _is_said(model):
        yield "its configuration can't say its sizes", UNIFORM
    yield from _of_fields(model.config, family)
    yield from _of_windows(model.config, family)
    yield from _of_heads(model.config, family)
    for parameters in positions_by_kind(model.config).values():
        yield from _of_positions(parameters, family)
    for why in family.limits(model.config):
        yield why, OTHER


def positions_by_kind(config: Any) -> Mapping[str, Mapping[str, Any]]:
    """Returns the rotary parameters by the kind of layer they are for; those for all layers under an empty name."""
    parameters = dict(config.rope_parameters)
    nested = {name: value for name, value in parameters.items() if isinstance(value, Mapping)}
    return nested or {"": parameters}


def _of_weights(model: Any) -> Iterator[Reason]:
    odd = sorted({str(t.dtype) for t in model.state_dict().values() if t.is_floating_point() and t.dtype not in FLOATS})
    if odd or getattr(model.config, "quantization_config", None) is not None:
        yield f"weights of {', '.join(odd) or 'a quantised model'}", "prune and export first, quantise then"


def _is_said(model: Any) -> bool:
    """Whether a model that is built from the configuration has the same sizes, numbers and tables."""
    stock = empty_model(type(model), copy.deepcopy(model.config))
    if sizes_of(stock) != sizes_of(model):
        return False
    stored, tables = model.state_dict().keys(), dict(model.named_buffers())
    return all(numbers_of(stock, kind) == numbers_of(model, kind) for kind in (int, float)) and all(
        torch.equal(buffer, tables[name].to(buffer.device))
        for name, buffer in stock.named_buffers()
        if name not in stored and name in tables
    )


def _of_fields(config: Any, family: MlxFamily) -> Iterator[Reason]:
    for name, values in family.only.items():
        value = getattr(config, name, values[0])
        if value not in values:
            yield f"{name}={value}; mlx-lm computes with {name}={values[0]} only", OTHER


def _of_windows(config: Any, family: MlxFamily) -> Iterator[Reason]:
    """Tells of a window, if it is shorter than the model goes."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if family.windows or window is None or (kinds and "sliding_attention" not in kinds):
        return
    if window < config.max_position_embeddings:
        hint = f"for texts of at most {window} tokens, set sliding_window to null in config.json"
        yield f"its layers see a window of {window} tokens, which mlx-lm's {family.kind} doesn't", hint


def _of_heads(config: Any, family: MlxFamily) -> Iterator[Reason]:
    width, heads = getattr(config, "head_dim", None), config.num_attention_heads
    if family.square and width and width * heads != config.hidden_size:
        why = f"{heads} query heads of {width}, in layers of width {config.hidden_size}"
        yield f"{why}: {family.kind} computes the width of a head from the others", KEPT


def _of_positions(parameters: Mapping[str, Any], family: MlxFamily) -> Iterator[Reason]:
    kind = parameters.get("rope_type", "default")
    if kind not in family.rotary:
        yield f"rotary positions of the kind {kind!r}", OTHER
    elif kind == "yarn":
        for name, value in YARN.items():
            if parameters.get(name, value) != value:
                why = f"rotary positions with {name}={parameters[name]}; mlx-lm computes with {name}={value} only"
                yield why, f"set it so in config.json, and measure what that changes; {OTHER}"
        if ("mscale" in parameters) != ("mscale_all_dim" in parameters):
            yield "rotary positions with one of mscale and mscale_all_dim", OTHER

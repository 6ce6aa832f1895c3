"""Every model type of transformers, as small as it can be built: random weights, no files, no network."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from model_types import inputs
from model_types.exceptions import CHANGES, CLASSES, LEFT_OUT, OWN_INPUTS
from model_types.shrink import shrunk

TASKS = (
    *("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "CTC"),
    *("IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "UNIVERSAL_SEGMENTATION"),
    *("SEMANTIC_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION", "ZERO_SHOT_OBJECT_DETECTION"),
    *("TIME_SERIES_PREDICTION", "MULTIMODAL_LM", "SEQUENCE_CLASSIFICATION", "KEYPOINT_DETECTION"),
    *("KEYPOINT_MATCHING", "TEXT_TO_SPECTROGRAM", "IMAGE_TO_IMAGE", "PRETRAINING", "QUESTION_ANSWERING"),
)
"""Which head is taken, the first that there is: with one, the stream isn't itself an output, which would pin it."""


def _auto(name: str) -> Any:
    return importlib.import_module(f"transformers.models.auto.{name}")


def all_names() -> list[str]:
    """Every model type of the installed transformers."""
    return list(_auto("configuration_auto").CONFIG_MAPPING_NAMES)


def parts() -> dict[str, list[str]]:
    """Model types that are a part of others, and of which."""
    configuration = _auto("configuration_auto")
    found: dict[str, list[str]] = {}
    for name in all_names():
        if name in LEFT_OUT:
            continue
        for part in getattr(configuration.CONFIG_MAPPING[name], "sub_configs", {}).values():
            kind = getattr(part, "model_type", "")
            if kind and kind != name:
                found.setdefault(kind, []).append(name)
    return found


def names() -> list[str]:
    """Every model type that is built by itself: no part of another, and with no reason to leave it out."""
    inside = parts()
    return [name for name in all_names() if name not in LEFT_OUT and (name not in inside or headed(name))]


def headed(name: str) -> bool:
    """Whether a type has a model of its own with a head."""
    modeling = _auto("modeling_auto")
    return any(name in getattr(modeling, f"MODEL_FOR_{task}_MAPPING_NAMES", {}) for task in TASKS)


def class_name(name: str) -> str:
    """The name of the class that is built for a model type."""
    if name in CLASSES:
        return CLASSES[name]
    modeling = _auto("modeling_auto")
    for task in (*(f"FOR_{task}_" for task in TASKS), ""):
        found = getattr(modeling, f"MODEL_{task}MAPPING_NAMES", {}).get(name)
        if found:
            return found if isinstance(found, str) else found[0]
    raise KeyError(name)


def configuration(name: str) -> Any:
    """The smallest configuration: all fields shrunk, then what is said for this type."""
    kind = _auto("configuration_auto").CONFIG_MAPPING[name]
    values = shrunk(kind().to_dict())
    for path, value in CHANGES.get(name, {}).items():
        *parents, field = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = value
    for field in ("transformers_version", "model_type", "architectures", "dtype", "_name_or_path"):
        values.pop(field, None)
    return kind(**values)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def build(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Builds a model type with its inputs; ``llama+cache`` keeps the cache that is off otherwise."""
    name, _, variant = name.partition("+")
    transformers = importlib.import_module("transformers")
    config = configuration(name)
    for part in (config, config.get_text_config(), *(getattr(config, n, None) for n in ("decoder", "encoder"))):
        if hasattr(part, "use_cache"):
            part.use_cache = variant == "cache"
    with _seeded():
        model = getattr(transformers, class_name(name))(config).eval()
        given = OWN_INPUTS[name](config) if name in OWN_INPUTS else inputs.usual(model, config)
        takes = inspect.signature(model.forward).parameters
        if variant != "cache" and "use_cache" in takes:
            given["use_cache"] = False
        return model, _with_picture_tokens(model, config, given), {}


def _with_picture_tokens(model: nn.Module, config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Puts as many picture tokens before the words as the picture has features, which the model itself counts."""
    marks = [getattr(config, n, None) for n in ("image_token_id", "image_token_index", "audio_token_id")]
    mark = next((mark for mark in marks if isinstance(mark, int)), None)
    if mark is None or "input_ids" not in given:
        return given
    try:
        with torch.no_grad():
            model(**given)
    except ValueError as error:
        counted = re.search(r"features?:? (\d+)", str(error))
        if counted is None:
            raise
        words = given["input_ids"]
        count = int(counted[1]) // len(words)
        marked = torch.cat([words[:, :1], torch.full((len(words), count), mark), words[:, 1:]], dim=1)
        return {**given, "input_ids": marked}
    return given

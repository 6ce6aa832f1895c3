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

from model_types import inputs, mixtures
from model_types.exceptions import CHANGES, CLASSES, FREE_OUTPUTS, LEFT_OUT, OWN_INPUTS
from model_types.shrink import shrunk

TASKS = (
    *("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "CTC"),
    *("IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "OBJECT_DETECTION"),
    *("UNIVERSAL_SEGMENTATION",),
    *("SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "ZERO_SHOT_OBJECT_DETECTION"),
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
    pictured = "vision_config" in getattr(_auto("configuration_auto").CONFIG_MAPPING[name], "sub_configs", {})
    tasks = [*(["FOR_IMAGE_TEXT_TO_TEXT_"] if pictured else []), *(f"FOR_{task}_" for task in TASKS), ""]
    tables = [getattr(modeling, f"MODEL_{task}MAPPING_NAMES", {}) for task in tasks]
    tables += [getattr(modeling, table) for table in dir(modeling) if table.endswith("_MAPPING_NAMES")][1:]
    found = next((table[name] for table in tables if name in table), None)
    if found is None:
        raise KeyError(f"transformers has no automatic class for {name}")
    return found if isinstance(found, str) else str(found[0])


def configuration(name: str, *, experts: bool = False) -> Any:
    """The smallest configuration: all fields shrunk, then what is said for this type.

    Args:
        name: The type.
        experts: Whether mixtures get more experts than would be smallest, and all layers that may have some have some.
    """
    kind = _auto("configuration_auto").CONFIG_MAPPING[name]
    usual = kind().to_dict()
    values = shrunk(usual)
    changes = {**CHANGES.get(name, {}), **(mixtures.CHANGES.get(name, {}) if experts else {})}
    for path, value in changes.items():
        *parents, field = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = value
    if experts:
        values = mixtures.enlarge(values, usual)
    for field in ("transformers_version", "model_type", "architectures", "dtype", "_name_or_path"):
        values.pop(field, None)
    return kind(**values)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def build(name: str, *, experts: bool = False) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Builds a model type with its inputs; ``llama+cache`` keeps the cache that is off otherwise.

    Args:
        name: The type.
        experts: See `configuration`.
    """
    name, _, variant = name.partition("+")
    transformers = importlib.import_module("transformers")
    config = configuration(name, experts=experts)
    for part in (config, *(getattr(config, n, None) for n in ("text_config", "decoder", "encoder", "text_encoder"))):
        if hasattr(part, "use_cache"):
            part.use_cache = variant == "cache"
    with _seeded():
        model = getattr(transformers, class_name(name))(config).eval()
        options = {"free_outputs": name in FREE_OUTPUTS}
        more = {"use_cache": False} if variant != "cache" and _takes(model, "use_cache") else {}
        if name in OWN_INPUTS:
            return model, {**OWN_INPUTS[name](config), **more}, options
        return model, _first_that_runs(model, [{**given, **more} for given in inputs.variants(model, config)]), options


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _first_that_runs(model: nn.Module, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """Ways to write a picture or a sound down differ; the model says which is its own."""
    first: Exception | None = None
    for given in candidates:
        try:
            return _with_marks(model, given)
        except Exception as error:  # any of them is only tried
            first = first or error
    raise first or ValueError("no inputs")


def _with_marks(model: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Runs the model, with as many tokens for a picture or a sound among the words as there are features."""
    config: Any = model.config
    marks = [getattr(config, n, None) for n in inputs.MARKS]
    mark = next((mark for mark in marks if isinstance(mark, int)), None)
    with torch.no_grad():
        try:
            model(**given)
            return given
        except ValueError as error:
            counted = re.search(r"features?:? (\d+)", str(error))
            if counted is None or mark is None or "input_ids" not in given:
                raise
        words, error = given["input_ids"], None
        for size in (1, config.get_text_config().hidden_size):
            count = int(counted[1]) // len(words) // size
            marked = torch.cat([words[:, :1], torch.full((len(words), count), mark), words[:, 1:]], dim=1)
            if not 0 < count < 4096:
                continue
            try:
                model(**{**given, "input_ids": marked, **inputs.beside(given, marked, mark)})
                return {**given, "input_ids": marked, **inputs.beside(given, marked, mark)}
            except Exception as failed:
                error = error or failed
    raise error or ValueError("no place for the features")

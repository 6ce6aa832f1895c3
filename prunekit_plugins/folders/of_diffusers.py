"""Folders of Hugging Face's diffusers: one with a model in it. Pipelines are folders of such folders."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prunekit.plugin import ArgumentError, CheckpointError, Plan
from prunekit_plugins.checkpoints.tensorfile import TensorFile
from prunekit_plugins.folders.example_inputs import first_that_run
from prunekit_plugins.folders.library import (
    Fields,
    Library,
    Opening,
    Said,
    configuration_in,
    planned_reader,
    planned_writer,
)
from prunekit_plugins.folders.stock import check_whole
from prunekit_plugins.integrations.config_search import sizes_of
from prunekit_plugins.integrations.configuration import Builder, ConfigUpdate, say_sizes

CLASS = "_class_name"
WIDTHS = ("cross_attention_dim", "joint_attention_dim", "caption_channels", "text_embed_dim")
"""Fields that may say how wide the states of a text are."""
WORDS = 8
"""Places of such a text."""
STEP = 7
FRAMING = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)
"""Sizes before and after cropping, and where the crop began, as Stable Diffusion XL takes them (``time_ids``)."""
GUIDANCE = 3.5
PATCHES = 4
"""Patches along each side of a picture."""


def package(name: str, extra: str) -> ModuleType:
    """Imports a library.

    Raises:
        ArgumentError: It, or accelerate, isn't installed.
    """
    try:
        importlib.import_module("accelerate")  # both are needed, and told at once
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(f"{name} can't be imported.", why=str(error), hint=f'pip install "{extra}"') from error


def without_weights(build: Any) -> nn.Module:
    """Calls what builds a model, with parameters on the meta device and real buffers."""
    accelerate = package("accelerate", "prunekit[hf]")
    with accelerate.init_empty_weights(include_buffers=False):
        made: nn.Module = build()
    return made.eval()


def _lays_out(folder: Path) -> bool:
    return CLASS in configuration_in(folder)


def _makes(model: nn.Module) -> bool:
    return any(cls.__module__ == "diffusers.models.modeling_utils" for cls in type(model).__mro__)


def _class_in(folder: Path) -> Any:
    """Returns the class that a configuration names, out of diffusers itself."""
    diffusers = package("diffusers", "diffusers accelerate")
    name = configuration_in(folder)[CLASS]
    found = getattr(diffusers, str(name), None)
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise CheckpointError(
            "The class of the model isn't part of diffusers.",
            where=str(folder),
            why=f"its configuration names {json.dumps(name)}",
            hint="build the model with your own code, and fill it with prunekit.load",
        )
    return found


def _load(folder: Path) -> nn.Module:
    kind = _class_in(folder)
    try:
        model, found = kind.from_pretrained(
            str(folder), output_loading_info=True, local_files_only=True, torch_dtype=_dtype_in(folder)
        )
    except CheckpointError:
        raise
    except Exception as error:  # it raises errors of several libraries
        why = " ".join(str(error).split())[:300]
        raise CheckpointError("The model can't be read.", where=str(folder), why=why) from error
    check_whole(folder, sorted(found["missing_keys"]), sorted(key[0] for key in found["mismatched_keys"]))
    opened: nn.Module = model.eval()
    return opened


def _dtype_in(folder: Path) -> torch.dtype | None:
    """The dtype of the weights: diffusers would read them as float32."""
    for place in sorted(folder.glob("*.safetensors")):
        for stored in TensorFile(place).tensors.values():
            if stored.dtype.is_floating_point:
                return stored.dtype
    return None


def _built(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    return without_weights(lambda: kind.from_config(dict(config)))


def _empty(folder: Path) -> nn.Module:
    return _built(_class_in(folder), configuration_in(folder))


def _say(model: Any, plan: Plan, inputs: Mapping[str, Any]) -> Said:
    before = {name: value for name, value in model.config.items() if not name.startswith("_")}
    kind, fields = type(model), Fields(**before)

    def build(config: Any) -> nn.Module:
        return _built(kind, vars(config))

    if sizes_of(build(fields)) == sizes_of(model):
        return Said(ConfigUpdate({}, ()), {})
    update = say_sizes(model, fields, plan, inputs, Builder(Fields, build))
    return Said(update, {name: value for name, value in vars(fields).items() if value != before[name]})


def _write(model: Any, folder: Path, fields: Mapping[str, Any], max_shard_size: int | str) -> None:
    if fields:
        model.register_to_config(**fields)
    model.save_pretrained(str(folder), max_shard_size=max_shard_size)


def _write_config(model: Any, folder: Path) -> None:
    model.save_config(str(folder))


def _opening(model: nn.Module) -> Opening:
    name = type(model).__name__
    return Opening((f"from diffusers import {name}",), f'{name}.from_pretrained("FOLDER")')


def example_inputs(model: Any, *, seed: int = 0) -> dict[str, Any]:
    """Makes inputs on which a model runs: noise at a step, with a class or the states of a text where it takes them.

    Args:
        model: A ``diffusers.ModelMixin``, on the CPU.
        seed: Seed of the random values.

    Raises:
        ArgumentError: It runs on none that could be made.
    """
    proposals = _proposals(model.eval(), torch.Generator().manual_seed(seed))
    return first_that_run(model, proposals, "prune it in Python, with example inputs of yours")


def _proposals(model: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    takes, config = inspect.signature(model.forward).parameters, model.config
    name = "sample" if "sample" in takes else "hidden_states"
    side = config.get("sample_size") or 32
    channels = config.get("in_channels") or 3

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(model.dtype)

    sides = (side, side) if isinstance(side, int) else tuple(side)
    wide = next((config[field] for field in WIDTHS if config.get(field)), None)
    further: dict[str, Any] = {}
    if "timestep" in takes:
        further["timestep"] = torch.tensor([STEP], device="cpu")
    if "class_labels" in takes and (config.get("num_class_embeds") or config.get("num_embeds_ada_norm")):
        further["class_labels"] = torch.tensor([0], device="cpu")
    if "encoder_hidden_states" in takes and wide is not None:
        further["encoder_hidden_states"] = random(1, WORDS, wide if isinstance(wide, int) else max(wide))
    if "pooled_projections" in takes and config.get("pooled_projection_dim"):
        further["pooled_projections"] = random(1, config["pooled_projection_dim"])
    if "added_cond_kwargs" in takes and config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - len(FRAMING) * config["addition_time_embed_dim"]
        framing = torch.tensor([FRAMING], device="cpu", dtype=model.dtype)
        further["added_cond_kwargs"] = {"text_embeds": random(1, pooled), "time_ids": framing}
    if "guidance" in takes and config.get("guidance_embeds"):
        further["guidance"] = torch.tensor([GUIDANCE], device="cpu", dtype=model.dtype)
    if "img_ids" in takes:  # the picture is a list of patches, each with its place
        axes = len(config.get("axes_dims_rope") or (1, 1, 1))
        texts = torch.zeros(WORDS, axes, device="cpu", dtype=model.dtype)
        ids = {"img_ids": _places(axes).to(model.dtype), "txt_ids": texts}
        yield {name: random(1, PATCHES**2, channels), **further, **ids}
    for shape in ((channels, *sides), (channels, sides[0])):
        yield {name: random(1, *shape), **further}


def _places(axes: int) -> torch.Tensor:
    """Row and column of each patch of a square, along the last two axes: tensor ``[patches, axes]``."""
    places = torch.arange(PATCHES, device="cpu")
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    found = torch.zeros(PATCHES**2, axes, device="cpu")
    found[:, -2], found[:, -1] = rows.flatten(), columns.flatten()
    return found


DIFFUSERS = Library(
    "diffusers",
    "from_pretrained",
    _lays_out,
    _makes,
    example_inputs,
    _load,
    planned_reader(_empty),
    _say,
    _write,
    planned_writer(_write_config),
    _opening,
)

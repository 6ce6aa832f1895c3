"""Folders of timm: an architecture by name, with arguments, and weights."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from prunekit.plugin import CheckpointError, Plan
from prunekit_plugins.folders.library import (
    Fields,
    Library,
    Opening,
    Said,
    configuration_in,
    planned_reader,
    planned_writer,
)
from prunekit_plugins.folders.of_diffusers import package, without_weights
from prunekit_plugins.integrations.config_search import sizes_of
from prunekit_plugins.integrations.configuration import Builder, ConfigUpdate, say_sizes
from prunekit_plugins.integrations.huggingface import CONFIG
from prunekit_plugins.measure.latency import evaluating

SOURCE = "local-dir:"
"""How timm's ``create_model`` names a folder."""
ARCHITECTURE = "architecture"


def _timm() -> Any:
    return package("timm", "timm")


def _lays_out(folder: Path) -> bool:
    found = configuration_in(folder)
    return ARCHITECTURE in found and "model_type" not in found


def _makes(model: nn.Module) -> bool:
    return type(model).__module__.split(".")[0] == "timm"


def _load(folder: Path) -> nn.Module:
    try:
        model: nn.Module = _timm().create_model(f"{SOURCE}{folder}", pretrained=True)
    except Exception as error:  # it raises errors of several libraries
        why = " ".join(str(error).split())[:300]
        raise CheckpointError("The model can't be read.", where=str(folder), why=why) from error
    return model.eval()


def _empty(folder: Path, **arguments: Any) -> nn.Module:
    return without_weights(lambda: _timm().create_model(f"{SOURCE}{folder}", pretrained=False, **arguments))


def _say(model: Any, plan: Plan, inputs: Mapping[str, Any]) -> Said:
    with tempfile.TemporaryDirectory(prefix="prunekit-") as place:
        _write_config(model, Path(place))

        def build(config: Any) -> nn.Module:
            return _empty(Path(place), **vars(config))

        whole = build(Fields())
        if sizes_of(whole) == sizes_of(model):
            return Said(ConfigUpdate({}, ()), {})
        before = _arguments(whole, build)
        fields = Fields(**before)
        update = say_sizes(model, fields, plan, inputs, Builder(Fields, build))
    return Said(update, {name: value for name, value in vars(fields).items() if value != before[name]})


def _arguments(model: Any, build: Any) -> dict[str, Any]:
    """Returns sizes that the class takes as arguments: those with which the same model is built.

    A number is the attribute of its name, a list the widths of the stages, as the model knows them.
    """
    stages = [stage["num_chs"] for stage in getattr(model, "feature_info", None) or () if isinstance(stage, dict)]
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(model)).parameters.items():
        value, default = getattr(model, name, None), parameter.default
        if isinstance(default, list | tuple) and default and all(type(one) is int for one in default):
            value = tuple(stages[-len(default) :])
        if (type(value) is int and value > 1) or (isinstance(value, tuple) and value):
            found[name] = value
    for name in list(found):  # one by one: most are no sizes of this kind
        try:
            same = sizes_of(build(Fields(**{name: found[name]}))) == sizes_of(model)
        except Exception:  # whatever a class raises on an argument that it can't take
            same = False
        if not same:
            del found[name]
    return found


def _write(model: Any, folder: Path, fields: Mapping[str, Any], max_shard_size: int | str) -> None:
    _write_config(model, folder, fields)
    _write_features(model, folder)
    # copies, because the format takes no tensors that share memory
    tensors = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in model.state_dict().items()}
    safetensors.torch.save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_config(model: Any, folder: Path, fields: Mapping[str, Any] | None = None) -> None:
    place = folder / CONFIG
    package("timm.models._hub", "timm").save_config_for_hf(
        model, str(place)
    )  # its door is only for writing weights too
    if fields:
        config = json.loads(place.read_text("utf-8"))
        config["model_args"] = {**config.get("model_args", {}), **fields}
        place.write_text(json.dumps(config, indent=2), "utf-8")


def _write_planned_config(model: nn.Module, folder: Path) -> None:
    _write_config(model, folder)
    _write_features(model, folder)


def _write_features(model: Any, folder: Path) -> None:
    """Writes the width of the features that a model has into its configuration: timm takes it from an attribute, which
    says what it was built with.

    Which dim of the features holds them is seen at the model of that configuration, whose width the attribute says.
    Where it can't be seen, the configuration says no width.
    """
    place = folder / CONFIG
    config = json.loads(place.read_text("utf-8"))
    inputs = example_inputs(model)
    try:
        built: Any = _empty(folder).to("meta")
        with evaluating([model, built]):
            before = built.forward_features(*(one.to("meta") for one in inputs.values())).shape
            after = model.forward_features(*inputs.values()).shape
        found = {new for old, new in zip(before, after, strict=True) if old == built.num_features}
        narrower = found - {built.num_features} or found
    except Exception:  # whatever a model raises that has no such features, or has them in several tensors
        narrower = set()
    config.pop("num_features", None)
    if len(narrower) == 1:
        config["num_features"] = narrower.pop()
    place.write_text(json.dumps(config, indent=2), "utf-8")


def _opening(model: nn.Module) -> Opening:
    return Opening(("import timm",), f'timm.create_model("{SOURCE}FOLDER", pretrained=True)')


def example_inputs(model: Any, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Makes a picture of the size that a model was made for, under the name that its forward gives it."""
    size = model.pretrained_cfg.get("input_size", (3, 224, 224))
    name = next(iter(inspect.signature(model.forward).parameters))
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn((1, *size), generator=generator, device="cpu").to(next(model.parameters()).dtype)}


TIMM = Library(
    "timm",
    "create_model",
    _lays_out,
    _makes,
    example_inputs,
    _load,
    planned_reader(_empty),
    _say,
    _write,
    planned_writer(_write_planned_config),
    _opening,
)

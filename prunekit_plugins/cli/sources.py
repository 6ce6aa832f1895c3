"""Where models come from: torchvision, timm, a local folder of a library, or the user's own code.

Nothing is downloaded: weights are those that lie in the folder or that the user's code loads, and random otherwise.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn

from prunekit.plugin import ArgumentError, PrunekitError
from prunekit_plugins.cli.arguments import DTYPES, TensorSpec, search_here
from prunekit_plugins.folders import load_folder
from prunekit_plugins.folders.known import library_at, library_of
from prunekit_plugins.folders.of_timm import TIMM
from prunekit_plugins.folders.of_transformers import TRANSFORMERS
from prunekit_plugins.folders.pipeline import component_in, is_pipeline
from prunekit_plugins.folders.stock import class_of, holds_weights
from prunekit_plugins.integrations.huggingface import CONFIG

IMAGE = TensorSpec((1, 3, 224, 224))
INCEPTION = TensorSpec((1, 3, 299, 299))
VIDEO = TensorSpec((1, 3, 16, 112, 112))
FRAME = TensorSpec((1, 3, 128, 128))
TOKENS = TensorSpec((1, 16), "int64")

Inputs = tuple[torch.Tensor, ...] | Mapping[str, Any]
"""Positional inputs, or keyword ones: tensors, or mappings of them as diffusers takes them."""

RANDOM = "random weights"
BUILT = "weights as built"


class BuildError(PrunekitError, RuntimeError):
    """A model can't be built: a package is missing, or its own code raised."""


@attrs.frozen
class Source:
    """A model that was built, with what it is usually fed.

    Attributes:
        model: The model.
        inputs: Example inputs to use when none are given; empty when they can't be known.
        keyword: Name of the argument that the input is passed as; empty for positional inputs.
        weights: Where its weights are from.
        given: Example inputs that it came with; None where it came without.
    """

    model: nn.Module
    inputs: tuple[TensorSpec, ...] = ()
    keyword: str = ""
    weights: str = RANDOM
    given: Inputs | None = None


def from_torchvision(name: str) -> Source:
    """Builds a model of torchvision by its registered name."""
    models = find_package("torchvision.models", "prunekit[vision]")
    known = models.list_models()
    if name not in known:
        raise ArgumentError(f"torchvision has no model {name!r}.", hint=_close(name, known))
    builder = models.get_model_builder(name)
    family = builder.__module__.removeprefix("torchvision.models").lstrip(".").split(".")[0]
    if family in ("detection", "quantization"):
        raise ArgumentError(
            f"torchvision's {family} models can't be named on the command line.",
            where=name,
            hint="call prunekit.prune from Python, with the inputs that the model takes",
        )
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce that the default of init_weights will change
        warnings.simplefilter("ignore", FutureWarning)
        model = _called(lambda: builder(**options), f"torchvision:{name}")
    special = {"inception_v3": (INCEPTION,)}
    return Source(model, special.get(name) or {"video": (VIDEO,), "optical_flow": (FRAME, FRAME)}.get(family, (IMAGE,)))


def from_timm(name: str, *, empty: bool = False) -> Source:
    """Builds a model of timm by its registered name, or opens a folder that timm wrote."""
    if TIMM.lays_out(Path(name)):
        return from_folder(name, f"timm:{name}", empty=empty)
    timm = find_package("timm", "timm")
    if not timm.is_model(name):
        raise ArgumentError(f"timm has no model {name!r}.", hint=_close(name, timm.list_models()))
    model = _called(lambda: timm.create_model(name, pretrained=False), f"timm:{name}")
    size = getattr(model, "default_cfg", {}).get("input_size", IMAGE.shape[1:])
    return Source(model, (TensorSpec((1, *size)),))


def from_folder(name: str, typed: str, *, empty: bool) -> Source:
    """Opens a folder of diffusers or timm; of a pipeline the component that takes the noise away.

    Args:
        name: The folder.
        typed: The MODEL argument.
        empty: Whether weights should stay where they are.

    Raises:
        ArgumentError: They should; that is for folders of transformers. Or the library isn't installed.
        CheckpointError: There is no such model, or it has no weights.
    """
    if empty:
        raise ArgumentError(
            "The folder isn't one of transformers.", where=typed, hint="leave --weights and --on-disk out"
        )
    folder = Path(name)
    model = _called(lambda: load_folder(folder), typed)
    return _with_examples(Source(model, weights=str(folder / (component_in(folder, None) or ""))))


def folder_of(typed: str) -> Path | None:
    """Returns the folder that a MODEL argument names; None for models from elsewhere."""
    prefix, _, rest = typed.partition(":")
    named = prefix == "hf" or (prefix == "timm" and TIMM.lays_out(Path(rest)))
    return Path(rest) if named else None


def from_transformers(name: str, *, empty: bool = False) -> Source:
    """Builds a model from a local folder, with the weights that lie there; code in the folder isn't run.

    A folder that diffusers or timm wrote is opened as one of theirs.

    Args:
        name: The folder, with a ``config.json``.
        empty: Whether weights stay where they are: the model is built from its configuration alone.

    Raises:
        ArgumentError: There is no such folder.
        BuildError: transformers is missing or can't build it.
        CheckpointError: The weights are for another model.
    """
    folder = Path(name)
    if is_pipeline(folder) or library_at(folder) is not TRANSFORMERS:
        return from_folder(name, f"hf:{name}", empty=empty)
    if not (folder / CONFIG).is_file():
        raise ArgumentError(
            "An hf: model is given by a local folder that holds a config.json.",
            where=str(folder),
            hint="nothing is downloaded: save the model with model.save_pretrained(folder)",
        )
    transformers = find_package("transformers", "transformers")
    stored = not empty and holds_weights(folder)
    model = _called(lambda: load_folder(folder) if stored else _unfilled(transformers, folder), f"hf:{name}")
    keyword, weights = str(getattr(model, "main_input_name", "input_ids")), str(folder) if stored else RANDOM
    config: Any = model.config
    inputs: tuple[TensorSpec, ...] = (TOKENS,) if keyword == "input_ids" else ()
    if keyword == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        inputs = (TensorSpec((1, getattr(config, "num_channels", 3), config.image_size, config.image_size)),)
    source = Source(model, inputs, keyword, weights)
    return source if next(model.parameters()).is_meta else _with_examples(source)


def _unfilled(transformers: ModuleType, folder: Path) -> Any:
    """Builds a model from its configuration alone."""
    # False, not the default: that asks on the terminal whether code in the folder may run
    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    architecture = class_of(transformers, config)
    return (
        architecture.from_config(config, trust_remote_code=False)
        if architecture is transformers.AutoModel
        else (architecture(config))
    )


def _with_examples(source: Source) -> Source:
    """Adds inputs on which the model runs, where some are found; it may still be told its shapes."""
    try:
        given = library_of(source.model).inputs(source.model)
    except ArgumentError:
        return source
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = [one for value in given.values() for one in (value.values() if isinstance(value, Mapping) else [value])]
    specs = tuple(TensorSpec(tuple(one.shape), names[one.dtype]) for one in tensors)
    return attrs.evolve(source, inputs=specs, given=given)


def from_code(name: str) -> Source:
    """Calls a factory of the user's, ``package.module:factory``; modules in the working directory are found.

    It returns a model, or a model and example inputs for it: a tensor, several, or a dict of keyword ones.
    """
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise ArgumentError(
            "The model isn't named in a known way.",
            why=f"got {name!r}",
            hint="use torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory",
        )
    factory = look_up(path, attribute, "model")
    if isinstance(factory, nn.Module):
        return Source(factory, weights=BUILT)
    made = _tried(factory, name)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return _with_inputs(*made, where=name)
    return Source(_checked(made, name), weights=BUILT)


def _with_inputs(model: nn.Module, inputs: Any, *, where: str) -> Source:
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    given: Inputs = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs) if _is_row(inputs) else ()
    tensors = list(given.values()) if isinstance(given, Mapping) else list(given)
    names = {dtype: name for name, dtype in DTYPES.items()}
    if not tensors or not all(isinstance(one, torch.Tensor) and one.dtype in names for one in tensors):
        raise ArgumentError(
            "The factory returned a model and inputs that can't be read.",
            where=where,
            why=f"got {type(inputs).__name__}",
            hint=f"inputs are a tensor, a tuple of tensors or a dict of them, of one of {', '.join(DTYPES)}",
        )
    specs = tuple(TensorSpec(tuple(one.shape), names[one.dtype]) for one in tensors)
    return Source(model, specs, weights=BUILT, given=given)


def _is_row(value: Any) -> bool:
    return isinstance(value, tuple | list)


def look_up(path: str, attribute: str, what: str) -> Any:
    """Finds something in a module of the user's; modules in the working directory are found.

    Args:
        path: The module, as in an import.
        attribute: Its name there.
        what: What it is, for messages.

    Raises:
        ArgumentError: There is no such module, or nothing of that name in it.
        BuildError: The module's own code raised.
    """
    search_here()
    headline = f"The module of the {what} can't be imported."
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise BuildError(headline, where=path, why=str(error)) from error
        raise ArgumentError(
            f"There is no module {path!r}.",
            why=str(error),
            hint="name it as in an import; the working directory is searched first",
        ) from error
    except Exception as error:  # the user's module may fail in any way
        raise BuildError(headline, where=path, why=f"{type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ArgumentError(f"The module {path!r} has no {attribute!r}.", hint=_close(attribute, public))
    return getattr(module, attribute)


SOURCES: dict[str, Callable[[str, bool], Source]] = {
    "torchvision": lambda name, empty: from_torchvision(name),
    "timm": lambda name, empty: from_timm(name, empty=empty),
    "hf": lambda name, empty: from_transformers(name, empty=empty),
}
"""Prefix to what builds a model from the rest of its name, and from whether it is built without its weights."""


def find_package(name: str, install: str) -> ModuleType:
    """Imports a package that an extra brings.

    Raises:
        BuildError: It can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise BuildError(f"{package} can't be imported.", why=str(error), hint=f'pip install "{install}"') from error


def _called(factory: Callable[[], Any], where: str) -> nn.Module:
    return _checked(_tried(factory, where), where)


def _tried(factory: Callable[[], Any], where: str) -> Any:
    try:
        return factory()
    except PrunekitError:
        raise
    except Exception as error:  # the model's own code may fail in any way
        why = f"{type(error).__name__}: {error}"
        raise BuildError("The model can't be built.", where=where, why=why) from error


def _checked(model: Any, where: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ArgumentError("The factory must return an nn.Module.", where=where, why=f"got {type(model).__name__}")
    return model


def _close(name: str, known: Iterable[str]) -> str:
    """Names the nearest of very many names."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(repr(found) for found in close) + "?" if close else ""

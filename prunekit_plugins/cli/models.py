"""The MODEL argument: a model, where its weights are from, and example inputs for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import safetensors
import safetensors.torch
import torch
from torch import nn

from prunekit.plugin import ArgumentError, CheckpointError
from prunekit_plugins.checkpoints.tensorfile import CHECK_PATH, NO_FILE
from prunekit_plugins.cli.arguments import TensorSpec, read_inputs
from prunekit_plugins.cli.sources import RANDOM, SOURCES, Inputs, Source, find_package, from_code

SEED = 0


@attrs.frozen(eq=False)
class Subject:
    """The model that a command works on.

    Attributes:
        name: As it was typed.
        model: The model, in eval mode.
        inputs: Example inputs: positional ones, or keyword ones.
        specs: What the inputs were made from.
        weights: Where the weights are from: a file or folder, `RANDOM`, or `BUILT` for what the user's code made.
        on_disk: Whether the model is on the meta device, and its weights in files only.
        keyword: Name of the argument that a single input is passed as; empty for positional inputs.
    """

    name: str
    model: nn.Module
    inputs: Inputs
    specs: tuple[TensorSpec, ...]
    weights: str
    on_disk: bool = False
    keyword: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.weights}, input {' and '.join(str(spec) for spec in self.specs)}"

    @property
    def random(self) -> bool:
        """Whether the weights are random ones, so that which units are chosen means nothing."""
        return self.weights == RANDOM

    def beside(self, smaller: Path | None) -> Subject:
        """The same, with the file in its name that makes or holds a smaller model beside it, if there is one."""
        return self if smaller is None else attrs.evolve(self, weights=f"{self.weights} beside {smaller}")


def read_model(
    name: str, inputs: Sequence[str] | None = None, weights: Path | None = None, seed: int = SEED
) -> Subject:
    """Builds the model that is typed as ``MODEL``, with example inputs as ``--input`` states them.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``timm:FOLDER``, ``hf:FOLDER`` or ``package.module:factory``.
        inputs: Sizes, as ``1,3,224,224`` or ``1,16:int64``; None for those that are usual for the model.
        weights: A safetensors file with the model's weights; None for those that it comes with, or random ones.
        seed: Seed of random weights and inputs.

    Raises:
        ArgumentError: There is no such model, or its inputs aren't known or can't be read.
        BuildError: A package is missing, or the model's own code raised.
        CheckpointError: The weights don't fit.
    """
    return build(name, read_inputs(inputs or ()), weights, seed)


def build(
    name: str,
    specs: Sequence[TensorSpec],
    weights: Path | None = None,
    seed: int = SEED,
    *,
    empty: bool = False,
    runs: bool = False,
) -> Subject:
    """Builds the model that an argument names. The same argument gives the same weights every time.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME``, ``timm:FOLDER``, ``hf:FOLDER`` or ``package.module:factory``.
        specs: Its inputs; empty for those that it comes with, or the usual ones.
        weights: A safetensors file with the model's weights; None for those that it comes with, or random ones.
        seed: Seed of random weights and inputs.
        empty: Whether the model is built on the meta device, without weights.
        runs: Whether such a model will be run with weights from files: then its buffers are real.

    Raises:
        ArgumentError: There is no such model, or its inputs aren't known.
        BuildError: A package is missing, or the model's own code raised.
        CheckpointError: The weights don't fit.
    """
    prefix, colon, rest = name.partition(":")
    maker = SOURCES.get(prefix) if colon else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _without_weights(runs) if empty else contextlib.nullcontext():
            source = maker(rest, empty or weights is not None) if maker is not None else from_code(name)
    if empty and runs and callable(tie := getattr(source.model, "tie_weights", None)):
        tie()  # transformers ties parameters once they are loaded
    chosen = tuple(specs) or source.inputs
    if not chosen:
        raise ArgumentError(
            "The inputs of this model aren't known.", where=name, hint="give their shapes: --input 1,3,224,224"
        )
    if weights is not None:
        fill(source.model, weights)
    inputs = _inputs(source, chosen, torch.Generator().manual_seed(seed), "meta" if empty else "cpu")
    keyword = next(iter(inputs)) if isinstance(inputs, Mapping) and len(inputs) == 1 else ""
    origin = "no weights in memory" if empty else source.weights if weights is None else str(weights)
    return Subject(name, source.model.eval(), inputs, chosen, origin, empty, keyword)


def _inputs(source: Source, specs: Sequence[TensorSpec], generator: torch.Generator, device: str) -> Inputs:
    """Makes example inputs: those that a model came with, or random ones, by the names that it came with."""
    if source.given is not None and tuple(specs) == source.inputs:
        return source.given
    tensors = tuple(spec.tensor(generator).to(device) for spec in specs)
    names = tuple(source.given) if isinstance(source.given, Mapping) else ()
    if len(names) != len(tensors) and source.keyword:
        names = (source.keyword,)
    return dict(zip(names, tensors, strict=True)) if len(names) == len(tensors) else tensors


def _without_weights(runs: bool) -> contextlib.AbstractContextManager[Any]:
    if not runs:
        return torch.device("meta")
    accelerate = find_package("accelerate", "prunekit[hf]")
    return accelerate.init_empty_weights()  # type: ignore[no-any-return]


def fill(model: nn.Module, path: Path) -> None:
    """Loads a state dict from a safetensors file; names and shapes must be the model's.

    Raises:
        CheckpointError: The file can't be read, or is for another model.
    """
    if not path.is_file():
        raise CheckpointError(NO_FILE, where=str(path), hint=CHECK_PATH)
    try:
        tensors = safetensors.torch.load_file(str(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError("The file is corrupt or no safetensors file.", where=str(path), why=str(error)) from error
    try:
        missing, surplus = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes differ; PyTorch lists them below its headline
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError("The weights are for another model.", where=str(path), why="; ".join(lines)) from error
    # a file keeps one name of a shared tensor, which fills the others
    stored = {model.state_dict(keep_vars=True)[key].data_ptr() for key in tensors if key not in surplus}
    absent = [key for key in missing if model.state_dict(keep_vars=True)[key].data_ptr() not in stored]
    if absent or surplus:
        named = [*(f"{key} is missing" for key in absent[:3]), *(f"{key} isn't in the model" for key in surplus[:3])]
        raise CheckpointError("The weights are for another model.", where=str(path), why="; ".join(named))

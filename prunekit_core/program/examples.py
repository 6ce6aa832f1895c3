"""Example inputs: what a forward pass is recorded on, and how the model is run on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn

Runner = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a model on positional and keyword inputs (fake or real) and returns its outputs."""


def run_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The default `Runner`: calls the model."""
    return model(*args, **kwargs)


def run_with_cache(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Runs a model twice, the second time with what the first call returned for its own arguments.

    A cache that a model returns under the name under which its forward takes one (``past_key_values``) is what it reads
    when it decodes: one call is half of the program. The inputs stand for the tokens that come next as well.

    Args:
        model: A model that returns a mapping.
        inputs: Its keyword inputs.

    Returns:
        The outputs of both calls, without what was handed on; those of one call where nothing is.
    """
    first = model(**inputs)
    names = inspect.signature(model.forward).parameters
    returned = first.items() if isinstance(first, Mapping) else ()
    handed = {
        name: value
        for name, value in returned
        if name in names and name not in inputs and not isinstance(value, torch.Tensor)
    }
    if not handed:
        return first
    second = model(**inputs, **handed)
    return [{name: value for name, value in outputs.items() if name not in handed} for outputs in (first, second)]


@attrs.frozen(eq=False)
class Example:
    """Example inputs: what a forward pass is recorded on.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        runner: How the model is run on them.
        free_outputs: Patterns of names of outputs that may lose units.
        counts: How often costs of its program count, where they aren't those of the first example; see
            `Analysis.counted`.
        timed: How the model is run on them to be timed; None for the runner.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    runner: Runner = run_model
    free_outputs: tuple[str, ...] = ()
    counts: float | None = None
    timed: Runner | None = None

    @classmethod
    def of(cls, inputs: Any, runner: Runner = run_model) -> Example:
        """Reads example inputs: a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs."""
        if isinstance(inputs, Example):
            return inputs
        if isinstance(inputs, dict) or (isinstance(inputs, Mapping) and runner is run_model):
            return cls((), dict(inputs), runner)
        if isinstance(inputs, tuple | list):
            return cls(tuple(inputs), {}, runner)
        return cls((inputs,), {}, runner)


def example_of(
    inputs: Any, forward_fn: Callable[[nn.Module, Any], Any] | None, output_transform: Callable[[Any], Any] | None
) -> Example:
    """Makes the example that is run by ``forward_fn(model, inputs)`` and whose outputs go through a transform."""
    if forward_fn is None and isinstance(inputs, Mapping):
        inputs = dict(inputs)  # what a tokenizer returns is no dict
    if forward_fn is None and output_transform is None:
        return Example.of(inputs)

    def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if forward_fn is None:
            outputs = run_model(model, args, kwargs)
        else:
            outputs = forward_fn(model, _as_given(inputs, args, kwargs))
        if output_transform is None:
            return outputs
        return {"": outputs, "output_transform": output_transform(outputs)}

    return Example.of(inputs, run)


def _as_given(inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(inputs, dict):
        return kwargs
    if isinstance(inputs, tuple | list):
        return type(inputs)(args)
    return args[0]

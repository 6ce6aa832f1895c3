"""Example inputs for a model of transformers, by what its forward takes and by its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from prunekit.plugin import ArgumentError
from prunekit_plugins.folders.picture_inputs import words_with_pictures

LENGTH = 16
"""Tokens of a text."""
SAMPLES = 4000
"""Samples of a sound: a quarter of a second."""
BOTH = ("input_ids", "pixel_values")


def example_inputs(model: Any, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Makes inputs on which a model runs: random tokens, pictures or sounds in a batch of one.

    Args:
        model: A ``transformers.PreTrainedModel``, on the CPU or the meta device.
        seed: Seed of the random values.

    Returns:
        Keyword inputs: those without which the model doesn't run, and a picture beside a text where it takes both.

    Raises:
        ArgumentError: It runs on none that could be made.
    """
    device = next(model.parameters()).device
    flags = {module: module.training for module in model.modules()}
    try:
        return _found(model.eval(), device, seed)
    finally:
        for module, training in flags.items():
            module.training = training


def _found(model: Any, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    def made() -> Iterator[dict[str, torch.Tensor]]:
        for names in _combinations(model):
            generator = torch.Generator().manual_seed(seed)
            inputs = {name: _MAKERS[name](model.config, generator) for name in names}
            if names == BOTH:
                yield from words_with_pictures(model, inputs["input_ids"], inputs["pixel_values"], generator)
            yield inputs

    def placed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: v.to(device, model.dtype) if v.is_floating_point() else v.to(device) for n, v in inputs.items()}

    hint = "give their shapes: --input 1,3,224,224, or example_inputs={name: tensor} in Python"
    return first_that_run(model, map(placed, made()), hint)


def first_that_run(model: Any, proposals: Iterable[dict[str, Any]], hint: str) -> dict[str, Any]:
    """Returns the first of some inputs that a model runs on.

    Raises:
        ArgumentError: It runs on none of them.
    """
    error: Exception | None = None
    for inputs in proposals:
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as raised:  # whatever a model raises on inputs that it can't take
            error = error or raised
        else:
            return inputs
    raise ArgumentError(
        "The inputs of this model aren't known.",
        where=type(model).__name__,
        why=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}" if error else "",
        hint=hint,
    )


def _combinations(model: Any) -> Iterator[tuple[str, ...]]:
    """Yields names of inputs to try, all that may be meant first."""
    takes = inspect.signature(model.forward).parameters
    main = [name for name in ("input_ids", "input_features", "input_values", "pixel_values") if name in takes]
    decoder = ("decoder_input_ids",) if "decoder_input_ids" in takes else ()
    if "input_ids" in main and "pixel_values" in main:
        yield BOTH
    for name in sorted(main, key=lambda name: name != model.main_input_name):
        if decoder:
            yield (name, *decoder)
        yield (name,)


def _words(length: int) -> Callable[[Any, torch.Generator], torch.Tensor]:
    def make(config: Any, generator: torch.Generator) -> torch.Tensor:
        text = config.get_text_config()
        size = int(getattr(text, "vocab_size", None) or 2)
        least = 3 if size > 8 else 0  # the first ones are often those for padding and for the end
        return torch.randint(least, size, (1, length), generator=generator, device="cpu")

    return make


def _picture(config: Any, generator: torch.Generator) -> torch.Tensor:
    part = _part(config, ("vision_config", "image_config", "encoder"), "image_size")
    side = getattr(part, "image_size", None) or 224
    if isinstance(side, Mapping):
        side = (side["height"], side["width"])
    sides = (side, side) if isinstance(side, int) else tuple(side)[:2]
    channels = getattr(part, "num_channels", None) or getattr(part, "in_channels", None) or 3
    return torch.randn((1, channels, *sides), generator=generator, device="cpu")


def _spectrum(config: Any, generator: torch.Generator) -> torch.Tensor:
    part = _part(config, ("audio_config", "encoder"), "num_mel_bins")
    places = getattr(part, "max_source_positions", None) or 100
    return torch.randn((1, getattr(part, "num_mel_bins", None) or 80, 2 * places), generator=generator, device="cpu")


def _wave(config: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.randn((1, SAMPLES), generator=generator, device="cpu")


def _part(config: Any, names: tuple[str, ...], field: str) -> Any:
    """Returns the configuration in which a field is: the whole one, or one inside it."""
    parts = [config, *(getattr(config, name, None) for name in names)]
    return next((part for part in parts if getattr(part, field, None)), config)


_MAKERS: Mapping[str, Callable[[Any, torch.Generator], torch.Tensor]] = {
    "input_ids": _words(LENGTH),
    "decoder_input_ids": _words(LENGTH // 2),
    "pixel_values": _picture,
    "input_features": _spectrum,
    "input_values": _wave,
}

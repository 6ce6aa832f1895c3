"""The engines that prunekit knows: what each asks of a model, and its load test.

Libraries are imported when a profile is asked for: this module is loaded with every registry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from prunekit.plugin import ArgumentError, Registry, ServingEngine, ServingProfile

GROUP = 32
"""Widths are multiples of this where they can be: engines quantise weights in groups of 32."""


def transformers_profile(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> ServingProfile:
    """What the stock class of transformers asks for: one size for all layers, which its configuration can say."""
    from prunekit_plugins.integrations.serving import configured_profile

    return configured_profile(model, example_inputs, registry, engine="transformers")


def gguf_profile(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> ServingProfile:
    """What llama.cpp asks for: a family that it knows, one size for all layers, multiples of 32 to be quantised."""
    from prunekit_plugins.export.gguf.families import KNOWN

    profile = _grouped(model, example_inputs, registry, "gguf", KNOWN)
    config: Any = getattr(model, "config")  # noqa: B009  # of transformers, which has no types
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return _wide(
            profile, "llama.cpp rotates a part of each head in layers as wide as their queries, and that width stays"
        )
    return profile


def mlx_profile(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> ServingProfile:
    """What mlx-lm asks for: a family that it knows, one size for all layers, multiples of 32 to be quantised."""
    from prunekit_plugins.export.mlx import CLASSES, SQUARE

    profile = _grouped(model, example_inputs, registry, "mlx", CLASSES)
    if type(model).__name__ in SQUARE:
        return _wide(profile, "mlx-lm computes the width of this family's heads from that of its layers, which stays")
    return profile


def _wide(profile: ServingProfile, note: str) -> ServingProfile:
    """Keeps the width of the layers."""
    return attrs.evolve(profile, fixed=(*profile.fixed, "model.embed_tokens"), notes=(*profile.notes, note))


def _grouped(
    model: nn.Module, example_inputs: Any, registry: Registry | None, engine: str, families: Iterable[str]
) -> ServingProfile:
    from prunekit_plugins.integrations.serving import configured_profile

    name = type(model).__name__
    if name not in families:
        raise ArgumentError(
            f'serve="{engine}" is for families of language models that the exporter knows.',
            why=f"got {name}; known: {', '.join(sorted(families))}",
            hint='serve="onnx" asks for nothing',
        )
    return configured_profile(model, example_inputs, registry, engine=engine, multiple=GROUP)


def onnx_profile(model: nn.Module, example_inputs: Any, registry: Registry | None = None) -> ServingProfile:
    """What ONNX asks for: nothing; layers may differ, and outputs that are handed back to the model may shrink."""
    from prunekit_plugins.integrations.serving import is_of_transformers, recorded

    if not is_of_transformers(model):
        return ServingProfile()
    return ServingProfile(free_outputs=recorded(model, example_inputs, registry)[1])


def load_test(to: str) -> Callable[[Path], object | None]:
    """Makes a load test: the folder is exported, loaded in the engine and compared.

    Args:
        to: The kind of export.

    Returns:
        A function of the folder of a pruned model. It returns the comparison, or None where the engine isn't installed.
    """

    def run(folder: Path) -> object | None:
        from prunekit_plugins.export import export_folder

        with tempfile.TemporaryDirectory(prefix="prunekit-") as place:
            return export_folder(folder, Path(place) / f"model.{to}", to=to).check

    return run


TRANSFORMERS = ServingEngine(transformers_profile, "transformers 5.24", load_test("hf"))
GGUF = ServingEngine(gguf_profile, "llama.cpp in xllamacpp 2026.10", load_test("gguf"))
MLX = ServingEngine(mlx_profile, "mlx-lm 0.32", load_test("mlx"))
ONNX = ServingEngine(onnx_profile, "onnxruntime 1.32", load_test("onnx"))

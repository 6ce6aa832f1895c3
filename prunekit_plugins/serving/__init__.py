"""Serving profiles: of each engine what it asks of a model, and how a pruned one is tried in it."""

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.serving.engines import GGUF, MLX, ONNX, TRANSFORMERS


@hookimpl
def prunekit_serving_profiles() -> Mapping[str, Callable[..., Any]]:
    """The engines that prunekit knows."""
    return {"transformers": TRANSFORMERS, "gguf": GGUF, "mlx": MLX, "onnx": ONNX}

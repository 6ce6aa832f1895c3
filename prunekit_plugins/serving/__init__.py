"""Serving profiles: of each engine what it asks of a model, and how a pruned one is tried in it."""

from collections.abc import Callable, Mapping
from typing import Any

from prunekit.plugin import hookimpl
from prunekit_plugins.serving.engines import GGUF, MLX, ONNX, TRANSFORMERS
from prunekit_plugins.serving.gpu_engines import SGLANG, TENSORRT_LLM, VLLM


@hookimpl
def prunekit_serving_profiles() -> Mapping[str, Callable[..., Any]]:
    """The engines that prunekit knows."""
    named = {"transformers": TRANSFORMERS, "gguf": GGUF, "mlx": MLX, "onnx": ONNX}
    return {**named, "vllm": VLLM, "sglang": SGLANG, "tensorrt-llm": TENSORRT_LLM}

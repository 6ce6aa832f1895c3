"""Causal language models as ONNX files with free sizes of batch and sequence, and with caches as inputs and outputs."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_plugins.export.comparison import Comparison, ExportError, exporting, library
from prunekit_plugins.export.engines.steps import EngineCheck, Steps, checked_logs, expected_steps, version_of
from prunekit_plugins.export.onnx import LIMIT, export_onnx
from prunekit_plugins.folders.example_inputs import example_inputs

ROWS, SEEN, NEW = 2, 3, 2
"""Sizes of the example that is exported: sequences, tokens in the cache, and tokens after them."""
GROUPED = "grouped_mm"
"""Name in transformers of the experts' implementation by products of groups of rows."""
Past = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer with attention, ``[batch, heads, tokens, width]``."""


def is_decoder(model: Any) -> bool:
    """Whether a model of transformers writes token after token, and has no encoder."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder and model.main_input_name == "input_ids"


def export_in_onnx(
    model: nn.Module, folder: Path, path: Path, *, tolerance: float | None = None
) -> EngineCheck | Comparison | None:
    """Writes an ONNX file and compares it in onnxruntime.

    A causal language model takes ``input_ids`` ``[batch, sequence]``, ``attention_mask`` ``[batch, past + sequence]``
    (0 for padding, which stands on the left) and ``past_key_values.N.key`` and ``.value`` ``[batch, heads, past,
    width]`` of every layer that has attention; it gives ``logits`` and ``present.N.key`` and ``.value``. The first call
    gets caches of no tokens. Any other model is written for inputs of one size, see `export_onnx`.

    Args:
        model: A model of transformers; half precision is written in single.
        folder: Where it lies.
        path: The file. Weights of more than 2 GB lie in a second one, named after it.
        tolerance: What is accepted.

    Raises:
        ExportError: It can't be exported, or computes something else in onnxruntime.
        ArgumentError: A library is missing (extra ``export``).
    """
    if not is_decoder(model):
        return export_onnx(model, example_inputs(model), path, tolerance=tolerance)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    subject: Any = model
    config = subject.config
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or getattr(config, "sliding_window", None) is not None:
        raise ExportError(
            "The model can't be exported to ONNX; nothing was written.",
            where=type(model).__name__,
            why="some of its layers see a window of the tokens, or keep other states than keys and values",
            hint="export_onnx of prunekit_plugins.export writes it without caches, for inputs of one size",
        )
    exact = subject if subject.dtype is torch.float32 else copy.deepcopy(subject).float()
    quiet = contextlib.redirect_stdout(io.StringIO())
    with exporting(exact, "torch.onnx.export"), _expressible_experts(exact), quiet:
        stepper = _Stepper(exact)
        _write(stepper, path)
    expected = expected_steps(exact)
    with exporting(exact, "onnxruntime"):
        found, padded = _run(stepper, path, expected)
        wanted = expected_steps(exact, prompt=expected.prompt[: len(expected.prompt) // 2]).logs[:1]
    name = f"onnxruntime {version_of('onnxruntime')}"
    both = Steps(expected.prompt, expected.following, torch.cat([expected.logs, wanted]))
    return checked_logs(exact, both, torch.cat([found, padded]), name, tolerance)


@contextlib.contextmanager
def _expressible_experts(model: Any) -> Iterator[None]:
    """Makes products of groups of rows, for which ONNX has no operation, products of batches of matrices."""
    known = getattr(model.config, "_experts_implementation", None)
    if known != GROUPED:
        yield
        return
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(known)


class _Stepper(nn.Module):
    """A model with its caches as tensors.

    Attributes:
        layers: Layers that have a cache.
        shapes: Heads and widths of keys and values of each of them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._takes = "cache" if "cache" in parameters else "past_key_values"
        cache = _new_cache()
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device="cpu"), use_cache=True, **{self._takes: cache})
        filled = {i: layer for i, layer in enumerate(cache.layers) if getattr(layer, "keys", None) is not None}
        self.layers = tuple(filled)
        self.shapes = tuple((_sizes(layer.keys), _sizes(layer.values)) for layer in filled.values())

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: Past
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Computes logits ``[batch, sequence, vocabulary]`` and what the caches are after that."""
        cache = _new_cache()
        for layer, (keys, values) in zip(self.layers, past, strict=True):
            cache.update(keys, values, layer)
        new, total = input_ids.shape[1], attention_mask.shape[1]
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, total - new :]
        rows = torch.arange(new, device=input_ids.device)[:, None] + (total - new)
        before = torch.arange(total, device=input_ids.device)[None] <= rows
        seen = before[None, None] & (attention_mask[:, None, None, :] > 0)
        least = torch.finfo(self.model.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=input_ids.device).masked_fill(~seen, least)
        outputs = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, **{self._takes: cache}
        )
        return outputs.logits, [(cache.layers[layer].keys, cache.layers[layer].values) for layer in self.layers]

    def names(self, kind: str) -> list[str]:
        """Names of the caches in the file."""
        return [f"{kind}.{layer}.{part}" for layer in self.layers for part in ("key", "value")]

    def past(self, rows: int, tokens: int) -> Past:
        """Makes caches of zeros."""
        return [
            (torch.zeros(rows, k[0], tokens, k[1], device="cpu"), torch.zeros(rows, v[0], tokens, v[1], device="cpu"))
            for k, v in self.shapes
        ]


def _new_cache() -> Any:
    transformers: Any = library("transformers", "hf")
    return transformers.DynamicCache()


def _sizes(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.shape[1], tensor.shape[3]


def _write(stepper: _Stepper, path: Path) -> None:
    ids = torch.zeros(ROWS, NEW, dtype=torch.int64, device="cpu")
    mask = torch.ones(ROWS, SEEN + NEW, dtype=torch.int64, device="cpu")
    free = torch.export.Dim.DYNAMIC
    caches = [({0: free, 2: free}, {0: free, 2: free}) for _ in stepper.layers]
    program: Any = torch.onnx.export(
        stepper.eval(),
        (ids, mask, stepper.past(ROWS, SEEN)),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}, caches),
        input_names=["input_ids", "attention_mask", *stepper.names("past_key_values")],
        output_names=["logits", *stepper.names("present")],
    )
    size = sum(t.numel() * t.element_size() for t in stepper.state_dict().values())
    program.save(str(path), external_data=size > LIMIT)


def _run(stepper: _Stepper, path: Path, wanted: Steps) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs two sequences in a batch: the prompt with its steps of decoding, and half a prompt with padding before it.

    Returns:
        Log-probabilities of the first, ``[1 + steps, vocabulary]``, and of the second after its prompt, ``[1,
        vocabulary]``.
    """
    runtime: Any = library("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    half = len(wanted.prompt) // 2
    gap = len(wanted.prompt) - half
    ids = torch.tensor([wanted.prompt, (*[0] * gap, *wanted.prompt[:half])], device="cpu")
    mask = torch.ones_like(ids)
    mask[1, :gap] = 0
    past = [tensor.numpy() for pair in stepper.past(2, 0) for tensor in pair]
    rows, padded = [], None
    for token in (None, *wanted.following):
        if token is not None:
            ids = torch.full((2, 1), token, device="cpu")
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
        given = dict(zip(stepper.names("past_key_values"), past, strict=True))
        logits, *past = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **given})
        logs = torch.from_numpy(logits[:, -1]).double().log_softmax(-1)
        rows.append(logs[0])
        padded = logs[1:] if padded is None else padded
    assert padded is not None
    return torch.stack(rows), padded

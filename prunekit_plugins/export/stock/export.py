"""A causal language model to a folder for transformers, loaded by the stock class and compared."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit_plugins.export.comparison import ExportError
from prunekit_plugins.export.engines.steps import EngineCheck, Steps, checked_logs, expected_steps, version_of
from prunekit_plugins.folders.companions import copy_companions
from prunekit_plugins.folders.stock import load_stock
from prunekit_plugins.integrations.config_search import sizes_of
from prunekit_plugins.integrations.huggingface import empty_model, library


def export_stock(model: nn.Module, folder: Path, path: Path, *, tolerance: float | None = None) -> EngineCheck:
    """Writes a folder, loads it with the stock class, and compares token by token, with a cache.

    Args:
        model: A causal language model of transformers.
        folder: Where tokenizer and templates are copied from.
        path: An empty folder.
        tolerance: Largest difference of a log-probability that is accepted; None for the usual one.

    Raises:
        ExportError: The configuration can't say the sizes of the model, or the stock class computes something else.
    """
    subject: Any = model
    if not subject.can_generate() or subject.config.is_encoder_decoder:
        raise _refused(type(model).__name__, "it is no causal language model", "prunekit.save_folder writes every kind")
    stock = empty_model(type(model), copy.deepcopy(subject.config))
    if sizes_of(stock) != sizes_of(model):
        raise _refused(
            type(model).__name__,
            "no configuration can say its sizes",
            'prune(..., serve="transformers") takes sizes that one can say; prunekit.load_folder opens this folder',
        )
    subject.save_pretrained(str(path))
    copy_companions(folder, path)
    expected, name = expected_steps(model), f"transformers {version_of('transformers')}"
    loaded: Any = load_stock(path).float()
    return checked_logs(loaded, expected, _decoded(loaded, expected), name, tolerance)


def _refused(where: str, why: str, hint: str) -> ExportError:
    headline = "The model can't be exported to a folder for from_pretrained; nothing was written."
    return ExportError(headline, where=where, why=why, hint=hint)


def _decoded(model: Any, wanted: Steps) -> torch.Tensor:
    """Computes log-probabilities, ``[1 + steps, vocabulary]``, with the tokens that were seen in a cache."""
    rows, cache = [], library().DynamicCache()
    takes = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    for ids in (list(wanted.prompt), *([token] for token in wanted.following)):
        given = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            outputs = model(input_ids=given, use_cache=True, **{takes: cache})
        rows.append(outputs.logits[0, -1].double().log_softmax(-1).cpu())
    return torch.stack(rows)

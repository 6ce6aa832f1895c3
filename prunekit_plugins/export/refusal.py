"""The error for a model that an engine has no place for."""

from __future__ import annotations

from prunekit_plugins.export.comparison import ExportError

KEPT = "keep query heads and the width of the layers: ignored_layers=['model.embed_tokens']"
OTHER = "--to hf writes what transformers loads"


def not_exported(engine: str, why: str, hint: str = OTHER, where: str = "layers") -> ExportError:
    """Makes the error.

    Args:
        engine: The engine, or its format.
        why: What has no place.
        hint: What to do.
        where: Of which part of the model.
    """
    return ExportError(
        f"The model can't be exported to {engine}; nothing was written.", where=where, why=why, hint=hint
    )

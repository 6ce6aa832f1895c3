"""The error of a model that mlx-lm has no place for."""

from __future__ import annotations

from prunekit_plugins.export.comparison import ExportError

KEPT = "keep query heads and the width of the layers: ignored_layers=['model.embed_tokens']"
UNIFORM = 'prune(..., serve="mlx") gives all layers the same sizes'
OTHER = "--to hf writes what transformers loads"


def refused(why: str, hint: str = OTHER, where: str = "layers") -> ExportError:
    """Makes the error.

    Args:
        why: What has no place.
        hint: What to do.
        where: Of which part of the model.
    """
    return ExportError("The model can't be exported to MLX; nothing was written.", where=where, why=why, hint=hint)

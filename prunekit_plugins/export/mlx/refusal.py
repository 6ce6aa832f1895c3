"""The error of a model that mlx-lm has no place for."""

from __future__ import annotations

import functools

from prunekit_plugins.export.refusal import not_exported

UNIFORM = 'prune(..., serve="mlx") gives all layers the same sizes'
refused = functools.partial(not_exported, "MLX")
"""Makes the error; see `not_exported`."""

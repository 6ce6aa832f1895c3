"""Folders that mlx-lm loads."""

from prunekit_plugins.export.mlx.export import export_mlx

__all__ = ["export_mlx"]

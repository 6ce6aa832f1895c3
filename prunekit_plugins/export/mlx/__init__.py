"""Folders that mlx-lm loads."""

from prunekit_plugins.export.mlx.export import CLASSES, SQUARE, export_mlx

__all__ = ["CLASSES", "SQUARE", "export_mlx"]

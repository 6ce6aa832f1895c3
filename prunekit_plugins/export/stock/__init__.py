"""Folders that the stock class of transformers loads."""

from prunekit_plugins.export.stock.export import export_stock

__all__ = ["export_stock"]

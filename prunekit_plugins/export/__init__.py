"""Pruned models in the formats of other runtimes, compared with the model before anything is written."""

from prunekit_plugins.export.comparison import Comparison, ExportError
from prunekit_plugins.export.onnx import export_onnx
from prunekit_plugins.export.program import export_program

__all__ = ["Comparison", "ExportError", "export_onnx", "export_program"]

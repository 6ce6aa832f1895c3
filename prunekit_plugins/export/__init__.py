"""Pruned models in the formats of other runtimes, compared with the model before anything is written."""

from prunekit_plugins.export.comparison import Comparison, ExportError
from prunekit_plugins.export.folder import Exported, export_folder
from prunekit_plugins.export.onnx import export_onnx
from prunekit_plugins.export.program import export_program

__all__ = ["Comparison", "ExportError", "Exported", "export_folder", "export_onnx", "export_program"]

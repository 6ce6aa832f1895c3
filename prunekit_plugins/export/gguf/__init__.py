"""GGUF files, which llama.cpp and what is built on it load."""

from prunekit_plugins.export.gguf.export import export_gguf

__all__ = ["export_gguf"]

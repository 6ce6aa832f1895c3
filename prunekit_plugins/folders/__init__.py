"""Folders of models as Hugging Face's transformers lays them out: read, and written so that they load."""

from prunekit_plugins.folders.reading import load_folder
from prunekit_plugins.folders.writing import SavedFolder, save_folder

__all__ = ["SavedFolder", "load_folder", "save_folder"]

"""Folders on the Hugging Face hub: checked before work starts, uploaded when it is done."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from prunekit.plugin import ArgumentError, StorageError

MESSAGE = "Pruned with prunekit"


def check_repository(name: str) -> None:
    """Makes sure that a folder could be pushed somewhere; nothing is sent.

    Raises:
        ArgumentError: huggingface_hub isn't installed, or the name is none of a repository.
    """
    checks, errors = _hub("utils"), _hub("errors")
    try:
        checks.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ArgumentError(
            "The name is none of a repository.", why=" ".join(str(error).split()), hint='"user/name"'
        ) from error


def push(folder: Path, name: str) -> str:
    """Uploads a folder to a repository, which is made if it isn't there.

    Args:
        folder: What `save_folder` wrote.
        name: ``"user/name"``.

    Returns:
        The address of the repository.

    Raises:
        StorageError: The hub can't be reached, or refuses.
    """
    api = _hub().HfApi(library_name="prunekit")
    try:
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=str(folder), commit_message=MESSAGE)
    except Exception as error:  # it raises errors of several libraries
        raise StorageError(
            "The folder was written, and the hub refuses it.",
            where=f"{folder}, {name}",
            why=" ".join(str(error).split())[:300],
            hint="log in (hf auth login, or HF_TOKEN), and upload it: hf upload NAME FOLDER",
            cause=error if isinstance(error, OSError) else None,
        ) from error
    return str(made)


def _hub(part: str = "") -> ModuleType:
    """Imports huggingface_hub, or a part of it, which it loads when it is imported by name only."""
    try:
        whole = importlib.import_module("huggingface_hub")
        return importlib.import_module(f"huggingface_hub.{part}") if part else whole
    except ImportError as error:
        raise ArgumentError(
            "huggingface_hub can't be imported.", why=str(error), hint="pip install huggingface_hub"
        ) from error

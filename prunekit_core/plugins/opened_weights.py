"""Weights that a plugin opened: what it says about them is checked, and what it raises is its error."""

from __future__ import annotations

from typing import Any

import torch

from prunekit_core.plugins.blame import Blame

_HEADLINE = "A plugin can't read weights."


class OpenedWeights:
    """The weights of a model on disk, with the methods that `prunekit_weights` asks for.

    Args:
        opened: What the plugin returned.
        blame: Whose it is.
    """

    def __init__(self, opened: Any, blame: Blame) -> None:
        self._opened, self._blame = opened, blame

    def __contains__(self, name: str) -> bool:
        """Tells whether there are values of a tensor.

        Raises:
            PluginError: The plugin raises.
        """
        with self._blame.blamed(_HEADLINE, name):
            return name in self._opened

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of a tensor.

        Raises:
            PluginError: The plugin raises, or returns no dtype.
        """
        with self._blame.blamed(_HEADLINE, name):
            found = self._opened.dtype(name)
        if not isinstance(found, torch.dtype):
            raise self._blame.error(_HEADLINE, f"dtype() returned {found!r}, which is no torch.dtype", at=name)
        return found

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names of a tensor.

        Raises:
            PluginError: The plugin raises, or returns no names.
        """
        with self._blame.blamed(_HEADLINE, name):
            found = self._opened.names(name)
        if isinstance(found, str) or not all(isinstance(known, str) for known in found):
            raise self._blame.error(_HEADLINE, f"names() returned {found!r}, which are no names", at=name)
        return tuple(found)

    def read(self, name: str, plan: Any) -> torch.Tensor:
        """Reads a tensor and cuts it as a plan does.

        Raises:
            PluginError: The plugin raises, or returns no tensor with values.
        """
        with self._blame.blamed(_HEADLINE, name):
            found = self._opened.read(name, plan)
        if not isinstance(found, torch.Tensor) or found.is_meta:
            raise self._blame.error(_HEADLINE, f"read() returned {_words(found)}, not a tensor with values", at=name)
        return found


def _words(found: object) -> str:
    return "a tensor on the meta device" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"

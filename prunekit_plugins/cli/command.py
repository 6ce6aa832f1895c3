"""A command that is imported when the command line runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import attrs


@attrs.frozen
class LazyCommand:
    """Stands for a function with typer annotations in a module that is costly to import, or needs an extra.

    Attributes:
        module: Dotted name of the module.
        function: Name of the function in it.
        summary: The first line of its help, for the overview of all commands.
    """

    module: str
    function: str
    summary: str = ""

    def load(self) -> Callable[..., Any]:
        """Imports the module and returns the function."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Imports the module and calls the function."""
        return self.load()(*args, **kwargs)

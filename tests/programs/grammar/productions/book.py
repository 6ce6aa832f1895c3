"""Where productions register."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tests.programs.grammar.draft import Draft


@attrs.frozen
class Production:
    """A way to go on with a program.

    Attributes:
        write: Adds statements to a draft, or raises.
        weight: How often it is chosen.
    """

    write: Callable[[Draft], None]
    weight: float


class Book:
    """The productions of one file.

    Args:
        family: What their names start with.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.productions: dict[str, Production] = {}

    def add(self, weight: float = 1.0) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
        """Registers a function under its name."""

        def register(write: Callable[[Draft], None]) -> Callable[[Draft], None]:
            self.productions[f"{self.family}.{write.__name__}"] = Production(write, weight)
            return write

        return register

"""Names of Torch-Pruning that can't work here: importing them is fine, calling them says what to use instead."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from prunekit.plugin import PrunekitError


class UnavailableError(PrunekitError, NotImplementedError):
    """A name of Torch-Pruning has no meaning in prunekit; the hint says what to use instead."""


class Unavailable(Protocol):
    """A function that always raises."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `UnavailableError`."""


def refuse(name: str, why: str, hint: str) -> UnavailableError:
    """Words the error for something that prunekit has no counterpart of."""
    return UnavailableError(f"{name} is not available in prunekit.", why=why, hint=hint)


def unavailable(name: str, why: str, hint: str) -> Unavailable:
    """Returns a function that can be imported and raises when called.

    Args:
        name: The name under which it is imported.
        why: Why it has no counterpart.
        hint: What to use instead.
    """

    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise refuse(name, why, hint)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Not available: {why}; {hint}."
    return call

"""Failures of a check in one line: what is no argument of it, and what a plugin's object raised, with file and line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from prunekit_core.errors import PrunekitError
from prunekit_core.plugins.blame import STOPS, describe_error, module_of
from prunekit_core.plugins.owners import call_hint


class UnseenError(AssertionError):
    """A check could see nothing, as the network that it works on has nothing that the plugin's object is about."""


def require(holds: bool, check: str, words: str, given: object) -> None:
    """Raises `AssertionError` unless an argument of a check is what the check takes.

    Args:
        holds: Whether it is.
        check: Name of the check.
        words: What the check takes.
        given: What it was given.
    """
    if not holds:
        raise AssertionError(f"{check} takes {words}, not {given!r}")


def require_tensors(check: str, given: object) -> None:
    """Raises `AssertionError` unless the argument of a check is a list or tuple of tensors."""
    holds = isinstance(given, Sequence) and all(isinstance(item, torch.Tensor) for item in given)
    require(holds, check, "a list of tensors", type(given).__name__)


@contextlib.contextmanager
def failing(what: str, stranger: object) -> Iterator[None]:
    """Makes an `AssertionError` of whatever a plugin's object raises; errors of this library stay what they are.

    Args:
        what: What is done with the object, for the message.
        stranger: The object, whose module says which lines are the plugin's own.
    """
    try:
        yield
    except (AssertionError, PrunekitError):
        raise
    except STOPS as error:
        raise AssertionError(f"{what} raises {describe_error(error, module_of(stranger))}") from error


def made(make: Callable[..., Any], check: str, noun: str, *arguments: Any, **options: Any) -> Any:
    """Makes an object of a plugin by the function that it registers.

    Args:
        make: The class or function.
        check: Name of the check, for messages.
        noun: What it makes.
        arguments: What it is called with.
        options: What it is called with by name.

    Raises:
        AssertionError: It can't be called, or raises.
    """
    require(callable(make), check, f"a class or function that makes a {noun}", make)
    try:
        with failing(f"making the {noun}", make):
            return make(*arguments, **options)
    except AssertionError as error:
        hint = call_hint(noun, make, arguments, options) if isinstance(error.__cause__, TypeError) else ""
        if not hint:
            raise
        raise AssertionError(f"{error}; {hint}") from error.__cause__

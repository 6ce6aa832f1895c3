"""Whose fault an error in a plugin is: files and lines."""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from prunekit_core.errors import PluginError, PrunekitError


def site_of(thing: object) -> str:
    """Returns file and line of a function or class, the file of a module, else the name of the type."""
    try:
        inner = thing.func if isinstance(thing, functools.partial) else thing
        found: Any = inspect.unwrap(inner) if callable(inner) else inner
        if inspect.ismodule(found):
            return inspect.getfile(found)
        if isinstance(found, type):
            return f"{inspect.getfile(found)}:{inspect.getsourcelines(found)[1]}"
        return f"{found.__code__.co_filename}:{found.__code__.co_firstlineno}"
    except (AttributeError, TypeError, OSError):
        return type(thing).__name__


def describe_error(error: BaseException, module: str) -> str:
    """Words an exception with file and line: the innermost of a plugin's own, else the innermost of any.

    Args:
        error: The exception, as caught.
        module: Dotted name of the plugin's module, or the path of its file.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # its text names file and line
        return text
    package = module.partition(":")[0].partition(".")[0]
    frames = [
        (f"{frame.f_code.co_filename}:{line}", frame.f_globals.get("__name__", ""))
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith("<frozen")
    ]
    own = [site for site, name in frames if name.partition(".")[0] == package or site.rpartition(":")[0] == module]
    place = (own or [site for site, _ in frames] or [""])[-1]
    return f"{text} ({place})" if place else text


@contextlib.contextmanager
def blamed(wrong: Callable[[str], PluginError], stranger: object) -> Iterator[None]:
    """Makes whatever a stranger's function raises an error of its plugin; errors of this library stay what they are.

    Args:
        wrong: Makes the error from the words of what was raised.
        stranger: The function or object, whose module says which lines are the plugin's own.
    """
    try:
        yield
    except PrunekitError:
        raise
    except Exception as error:  # a stranger's function may fail in any way
        raise wrong(describe_error(error, getattr(stranger, "__module__", ""))) from error

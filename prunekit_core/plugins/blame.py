"""Whose fault an error is: plugins and functions of the user's, with files and lines."""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeGuard

import attrs
import torch

from prunekit_core.errors import PluginError, PrunekitError

STOPS = (Exception, SystemExit)
"""What a plugin may raise without ending the program: somebody else's code may fail in any way."""

_PASSED_ON = (PrunekitError, MemoryError, torch.cuda.OutOfMemoryError)
"""Exceptions that are nobody's fault, or say themselves whose."""


def function_of(thing: object) -> object:
    """Returns the function or class that is behind partials, bound methods and wrappers; else the thing itself."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return inspect.unwrap(thing) if callable(thing) else thing


def module_of(thing: object) -> str:
    """Returns the dotted name of the module of a function or class, or of an object's class; empty if it has none.

    It says which lines are the plugin's own where one of them raises, see `place_of`.
    """
    return getattr(function_of(thing), "__module__", None) or ""


def site_of(thing: object) -> str:
    """Returns file and line of a function or class, or of an object's class; the file of a module.

    The name of the type where that can't be found out (it is built in, or was typed at a prompt).
    """
    found: Any = function_of(thing)
    try:
        if inspect.ismodule(found):
            return inspect.getfile(found)
        code = getattr(found, "__code__", None)
        if isinstance(code, CodeType):
            return f"{code.co_filename}:{code.co_firstlineno}"
        cls = found if isinstance(found, type) else type(found)
        return f"{inspect.getfile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (AttributeError, TypeError, OSError):
        return type(thing).__name__


def place_of(frames: Iterable[tuple[FrameType, int]], module: str) -> str:
    """Returns file and line of the innermost frame of a package, else of the innermost frame of any; empty if none.

    Args:
        frames: Frames with their lines, outermost first.
        module: Dotted name of a module of the package (what follows a colon doesn't count), or the path of its file.
    """
    package = module.partition(":")[0].partition(".")[0]
    found = [
        (f"{frame.f_code.co_filename}:{line}", frame.f_globals.get("__name__", ""))
        for frame, line in frames
        if not frame.f_code.co_filename.startswith(("<frozen", "<attrs generated"))
    ]
    own = [site for site, name in found if name.partition(".")[0] == package or site.rpartition(":")[0] == module]
    return (own or [site for site, _ in found] or [""])[-1]


def is_absent(error: BaseException, module: str) -> TypeGuard[ModuleNotFoundError]:
    """Tells whether an import failed because there is no such module, or no package around it; else it imports one."""
    return isinstance(error, ModuleNotFoundError) and bool(error.name) and f"{module}.".startswith(f"{error.name}.")


def describe_error(error: BaseException, module: str) -> str:
    """Words an exception with file and line: the innermost of a plugin's own, else the innermost of any.

    Args:
        error: The exception, as caught.
        module: Dotted name of the plugin's module, or the path of its file.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # its text names file and line
        return text
    place = place_of(traceback.walk_tb(error.__traceback__), module)
    return f"{text} ({place})" if place else text


@attrs.frozen(eq=False)
class Blame:
    """Whose object is at work, for the error that is raised where it fails.

    Attributes:
        noun: What it is: ``"criterion 'magnitude'"``.
        thing: The object, function or class; its file and line are looked up when something is wrong. None where there
            is none to name.
        plugin: Name of the plugin that brought it; empty for an object that was given as an argument.
        built_in: Whether prunekit itself brought it. Its own tests check what it does, so that it isn't checked again
            at every call where that takes time.
        block: How it is left out: ``"PRUNEKIT_BLOCK=..."``; empty where it can't be.
    """

    noun: str
    thing: object | None
    plugin: str = ""
    built_in: bool = False
    block: str = ""

    @property
    def where(self) -> str:
        """The object, its plugin, file and line, for messages."""
        owner = f", from {self.plugin}" if self.plugin else ""
        return f"{self.noun}{owner}" if self.thing is None else f"{self.noun}{owner} ({site_of(self.thing)})"

    def error(
        self, headline: str, why: str, *, at: str = "", hint: str = "", kind: type[PrunekitError] = PluginError
    ) -> PrunekitError:
        """Makes the error that says what is wrong with the object.

        Args:
            headline: The fixed headline.
            why: What it returned, or raised.
            at: What it was used on: ``"group conv1"``.
            hint: How it is corrected, where that can be said.
            kind: The class of the error.
        """
        where = f"{self.where}, on {at}" if at else self.where
        if self.built_in:
            hint = hint or "please report it, with the model"
        elif self.block:
            hint = f"{hint or 'correct it'}; until then, leave the plugin out: {self.block}"
        return kind(headline, where=where, why=why, hint=hint or "correct it")

    @contextlib.contextmanager
    def blamed(self, headline: str, at: str = "") -> Iterator[None]:
        """Makes whatever the object raises, `SystemExit` too, a `PluginError` with that as its cause.

        Errors of prunekit's own stay what they are, and so do memory that ran out and interrupts.
        """
        try:
            yield
        except _PASSED_ON:
            raise
        except STOPS as error:
            raise self.error(headline, describe_error(error, module_of(self.thing)), at=at) from error

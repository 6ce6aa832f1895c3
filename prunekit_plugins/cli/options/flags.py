"""The flags of a command in the place of arguments in Python, in what is said to whoever typed it."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
import typer

from prunekit.plugin import PrunekitError

ARGUMENTS: Mapping[str, str] = {"ignored_layers": "ignore", "example_inputs": "inputs"}
"""Arguments in Python to the parameters of commands that stand for them, where the names differ."""
OF_COMMANDS: Mapping[str, Mapping[str, str]] = {"distill": {"weights": "losses"}}
"""The same for one command alone, by its name."""
PRUNE = "prune"
_CALLED = r"[A-Za-z_]\w*(?:\([^()]*\))?"
_VALUE = r"\"[^\"]*\"|'[^']*'|\{{[^{{}}]*\}}|\[[^\[\]]*\]|\.\.\.|-?\d+(?:\.\d+)?(?:e-?\d+)?|" + _CALLED + "|"
_GIVEN = r"(?<![\w.\-/])({names})\s?=(?!=)(" + _VALUE + ")"
_NAMED = r"(?<![\w.\-/\"'])({names})(?![\w(=\"'])"
_CALL = re.compile(r"\bprune\(\.\.\., ((?:[^()]|\(\))*)\)")


@attrs.frozen
class Flag:
    """How an argument in Python is typed.

    Attributes:
        on: The flag: ``--ignore``.
        off: What says the opposite; empty where nothing does.
        metavar: What stands for a value.
        switch: Whether it takes none.
        once: Whether one value says all, so that it isn't repeated.
    """

    on: str
    off: str
    metavar: str
    switch: bool
    once: bool = False

    def typed(self, text: str) -> str:
        """Returns what is typed for a value, as it is written in Python; an empty text is none."""
        if self.switch:
            return self.off if text == "False" and self.off else self.on
        if not text:
            return self.on
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a name, which stands for something
            value = ...
        if isinstance(value, Mapping) and "name" in value:
            rest = [f",{name}={one}" for name, one in value.items() if name != "name"]
            return f"{self.on} {value['name']}{''.join(rest)}"
        if isinstance(value, Mapping) and self.once:
            return f"{self.on} {','.join(f'{name}={one}' for name, one in value.items())}"
        if isinstance(value, Mapping):
            return " ".join(f"{self.on} {name}={one}" for name, one in value.items())
        parts = value if isinstance(value, list) else ["none" if value is None else value]
        return " ".join(f"{self.on} {self.metavar if part is ... else part}" for part in parts)


@attrs.frozen
class Flags:
    """The flags of a command, by the arguments in Python that they stand for.

    Attributes:
        known: Its own.
        prune: Those of ``prunekit prune``, for what says how to prune.
    """

    known: Mapping[str, Flag]
    prune: Mapping[str, Flag] = attrs.field(factory=dict)

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], prune: Callable[..., Any] | None = None) -> Flags:
        """Reads them off the functions of a command and of ``prunekit prune``."""
        return cls(_flags(name, function), {} if prune is None else _flags(PRUNE, prune))

    def words(self, text: str) -> str:
        """Puts flags in the place of arguments: ``--ratio 0.5`` for ``ratio=0.5``.

        Names without a value are exchanged as well where they have an underscore, which no other word has.
        """
        known = {**self.prune, **self.known} if re.search(r"\bprune\b", text) else self.known
        names = sorted(known, key=len, reverse=True)
        for pattern, bare in ((_GIVEN, False), (_NAMED, True)):
            listed = "|".join(name for name in names if not bare or "_" in name)
            if listed:
                found = re.compile(pattern.format(names=listed))
                text = found.sub(lambda m: known[m[1]].on if m.lastindex == 1 else known[m[1]].typed(m[2]), text)
        return _CALL.sub(r"prune with \1", text)


def _flags(name: str, function: Callable[..., Any]) -> dict[str, Flag]:
    application = typer.Typer(add_completion=False)
    application.command()(function)
    command: Any = typer.main.get_command(application)
    options = {one.name: one for one in command.params if one.param_type_name == "option"}
    others = {**ARGUMENTS, **OF_COMMANDS.get(name, {})}
    taken = {**{one: one for one in options if one not in others.values()}, **others}
    return {mine: _flag(options[typed]) for mine, typed in taken.items() if typed in options}


def _flag(option: Any) -> Flag:
    off = option.secondary_opts[0] if option.secondary_opts else ""
    return Flag(option.opts[0], off, option.metavar or "...", bool(option.is_flag), not option.multiple)


_SPEAKING: ContextVar[Callable[[], Flags] | None] = ContextVar("flags of the command that runs", default=None)


def words(text: str) -> str:
    """Says something in the flags of the command that runs; as it is where none does."""
    found = _SPEAKING.get()
    return text if found is None or ("=" not in text and "_" not in text) else found().words(text)


@contextlib.contextmanager
def speaking(flags: Callable[[], Flags]) -> Iterator[None]:
    """Makes what is said within a ``with`` statement be said in flags, errors that leave it too.

    Args:
        flags: Reads the flags of the command that runs, where there is something to say.
    """
    token = _SPEAKING.set(flags)
    try:
        yield
    except PrunekitError as error:
        foreign = error.__cause__ is not None and not isinstance(error.__cause__, PrunekitError)
        for part in ("headline", "hint") if foreign else ("headline", "why", "hint"):  # what others say stays as it is
            setattr(error, part, words(getattr(error, part)))
        raise
    finally:
        _SPEAKING.reset(token)

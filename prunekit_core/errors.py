"""Every error prunekit raises on purpose: a headline, then where, why and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PrunekitError(Exception):
    """Base of all prunekit errors.

    Args:
        headline: One sentence that says what went wrong.
        where: The module, operation, file or argument concerned.
        why: The cause, as far as it is known.
        hint: What the caller can do about it.
    """

    def __init__(self, headline: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.headline = headline
        self.where = where
        self.why = why
        self.hint = hint
        super().__init__(headline)

    def __str__(self) -> str:
        lines = [self.headline]
        for label, text in (("where", self.where), ("why", self.why), ("what to do", self.hint)):
            if text:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)


class ArgumentError(PrunekitError, ValueError):
    """An argument is wrong; nothing was traced or changed."""


class KeywordError(ArgumentError, TypeError):
    """There is no argument of that name; nothing was traced or changed."""


class UnsupportedModelError(PrunekitError, TypeError):
    """The object can't be analysed at all: no module, a ScriptModule, lazy, quantised or sharded parameters."""


class RecordingError(PrunekitError, RuntimeError):
    """The forward pass raised on the example inputs (its own exception is the cause), or can't be recorded."""


class UnitsError(PrunekitError, IndexError):
    """The requested channel indices can't be removed: out of range, pinned, or not whole units."""


class NothingToPruneError(PrunekitError, RuntimeError):
    """The analysis found no unit that may be removed; the message says what pinned what."""


class RehearsalError(PrunekitError, RuntimeError):
    """The pruned program could not be proven to be the same program; the model is untouched.

    Attributes:
        branches: Names of the branches to leave out, where it is known which of those asked for can't go.
    """

    branches: tuple[str, ...] = ()


class VerificationError(PrunekitError, RuntimeError):
    """A cut, compared by numbers, isn't the original with the removed units zeroed; the model is untouched."""


class BusyModelError(PrunekitError, RuntimeError):
    """Another thread works on the model; nothing was changed by this one."""


class PlanError(PrunekitError, ValueError):
    """A plan is malformed, or was made for another model.

    Attributes:
        misfit: Whether the model lacks what the plan changes, or has it in another shape.
    """

    misfit = False


class CheckpointError(PrunekitError, ValueError):
    """A checkpoint file is corrupt, foreign, or doesn't fit the model."""


class StorageError(CheckpointError, OSError):
    """The system refuses to write or read a file; ``errno`` and ``filename`` are those of its own error, the cause.

    Args:
        headline, where, why, hint: See `PrunekitError`.
        cause: The system's error.
    """

    def __init__(
        self, headline: str, *, where: str = "", why: str = "", hint: str = "", cause: OSError | None = None
    ) -> None:
        super().__init__(headline, where=where, why=why, hint=hint)
        self.errno = None if cause is None else cause.errno
        self.filename = None if cause is None else cause.filename


class PluginError(PrunekitError, RuntimeError):
    """A plugin is broken, or two plugins claim the same key."""


def first_reasons(reasons: Sequence[str], count: int = 8) -> str:
    """Joins the first of several reasons, and says how many more there are."""
    more = f"; and {len(reasons) - count} more" if len(reasons) > count else ""
    return "; ".join(reasons[:count]) + more


def many(count: int, one: str, several: str = "") -> str:
    """Words a number of things: ``"1 sample"``, ``"2 samples"``; the plural is the singular with an s, or is given."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Words a hint for a misspelt name: the closest known names, or all of them when few.

    Args:
        name: What the user typed.
        known: The accepted names.

    Returns:
        A sentence such as ``"did you mean 'magnitude'? known: lamp, magnitude, random"``.
    """
    names = sorted(known)
    listing = "known: " + (", ".join(names) if names else "none")
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not close:
        return listing
    return "did you mean " + " or ".join(repr(c) for c in close) + f"? {listing}"

"""Reasons: why an axis must keep its size."""

from __future__ import annotations

import enum

import attrs


class ReasonKind(enum.Enum):
    """What pins an axis."""

    OPERATION = "operation"
    """What an operation needs."""
    KERNEL = "kernel"
    """It is a dim of a kernel, which holds no units."""
    INPUT = "input"
    """It is an input of the model."""
    OUTPUT = "output"
    """It is, or may be, an output of the model."""
    UNTOUCHED = "untouched"
    """No recording touched the parameter."""


@attrs.frozen
class Reason:
    """Why an axis must keep its size.

    Attributes:
        text: The reason in words.
        operation: The operation that needed it (``"aten::select.int"``), empty where none did.
        module: Dotted path of the innermost module that ran the operation.
        output: Name of the output of the model that is the reason; None where none is.
        kind: What pins the axis.
    """

    text: str
    operation: str = ""
    module: str = ""
    output: str | None = None
    kind: ReasonKind = ReasonKind.OPERATION

    def __str__(self) -> str:
        if self.output:
            return f"{self.text}: {self.output}"
        site = " in ".join(part for part in (self.operation, self.module) if part)
        return f"{self.text} ({site})" if site else self.text


SINGLE_UNITS = Reason("single units can't shrink")

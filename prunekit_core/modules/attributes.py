"""What an object holds, read past whatever its class makes of attribute look-up."""

from __future__ import annotations

import types
from typing import Any


def attributes_of(held: Any) -> dict[str, Any] | None:
    """Returns the ``__dict__`` of an object; None if it has none."""
    try:
        found = object.__getattribute__(held, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """Lists the descriptors of a class's ``__slots__``, those of its bases first; they go past its ``__setattr__``."""
    found = [value for base in reversed(cls.__mro__) if "__slots__" in vars(base) for value in vars(base).values()]
    return tuple(value for value in found if isinstance(value, types.MemberDescriptorType))

"""What a plugin says about a class of layers: how to prune it alone, and which attributes follow its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from prunekit_core.algebra.layout import Kept, Layout, kept_positions, new_size, prefix
from prunekit_core.plugins.opaque import Opaque
from prunekit_core.program.op_call import Role

PruningFunction = Callable[[nn.Module, Sequence[int]], nn.Module]
"""Removes units from one layer in place: ``prune(layer, indices) -> layer``."""


@attrs.frozen(eq=False)
class Resizing:
    """The new shape of a layer's own parameters and buffers.

    Attributes:
        layouts: Local name (``"weight"``) to one layout per dim.
        kept: Kept units per group.
    """

    layouts: Mapping[str, tuple[Layout, ...]]
    kept: Kept

    def __contains__(self, name: str) -> bool:
        return name in self.layouts

    def size(self, name: str, dim: int) -> int:
        """Returns the new size of a parameter dim."""
        return new_size(self.layouts[name][dim], self.kept)

    def place(self, name: str, dim: int, position: int) -> int:
        """Returns where a position of a parameter dim is afterwards, or would be: how many before it stay."""
        return int((kept_positions(self.layouts[name][dim], self.kept) < position).sum())

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the new shape of a parameter."""
        return tuple(new_size(layout, self.kept) for layout in self.layouts[name])

    def prefix(self, name: str, dim: int, size: int) -> int:
        """Returns the new size of the leading factor (old size given) of a dim; the old one where there is none."""
        found = prefix(self.layouts[name][dim], size)
        return size if found is None else new_size(found, self.kept)


Flat = Callable[[nn.Module, Mapping[str, tuple[Layout, ...]]], "Layout | None"]
"""Tells how the channels of a layer, as its users number them, are made of units, from the layouts of its own
parameters; None where the layer has no such channels."""


def no_attributes(module: nn.Module, resizing: Resizing) -> Mapping[str, Any]:
    """For layers that keep no sizes in attributes."""
    return {}


@attrs.frozen(eq=False)
class LayerType:
    """How a class of layers is pruned.

    Attributes:
        name: Short name for messages, ``"conv"``.
        prune_out: Removes units that the layer produces (or that lie along it), or None.
        prune_in: Removes units that the layer consumes, or None.
        flat_out: How its output channels are numbered.
        flat_in: How its input channels are numbered.
        also_out: Further functions that mean the same as ``prune_out``.
        also_in: Further functions that mean the same as ``prune_in``.
        roles: What its own parameters do along each of their dims, by local name, such as
            ``{"weight": (Role.OUT, Role.IN)}``. Rules say it of parameters that an operation is given as they are; a
            layer that transposes or reshapes a parameter first has to say it here. This wins over what rules say.
        attributes: Called with a module and its `Resizing`; returns the int or tuple-of-int attributes that state
            sizes, with their values for the new shapes.
        same_in_training: Whether the layer ties the same axes in train mode as in eval mode, though it asks which one
            it is in (a dropout, a BatchNorm). Where only such layers ask, one recording stands for both modes.
        opaque: What a recording must know if it isn't to look into the module; None: the module is traced through.
    """

    name: str
    prune_out: PruningFunction | None = None
    prune_in: PruningFunction | None = None
    flat_out: Flat | None = None
    flat_in: Flat | None = None
    also_out: tuple[PruningFunction, ...] = ()
    also_in: tuple[PruningFunction, ...] = ()
    roles: Mapping[str, Sequence[Role]] = attrs.field(factory=dict)
    attributes: Callable[[nn.Module, Resizing], Mapping[str, Any]] = no_attributes
    same_in_training: bool = False
    opaque: Opaque | None = None


@attrs.frozen(eq=False)
class Replacement:
    """A prunable equivalent for modules that can't hold a smaller shape.

    Attributes:
        name: Registered name, stored in plans.
        source: The class it replaces (exactly this class, no subclass).
        convert: Builds the equivalent around the same parameter objects; returns None where it can't, so that the
            module stays as it is.
    """

    name: str
    source: type[nn.Module]
    convert: Callable[[nn.Module], nn.Module | None]

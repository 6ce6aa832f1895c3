"""What is asked of a pruner for the place where the model is to be served, not by whoever calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

WITHOUT = "serve=None asks for nothing, and pk.load_folder opens what the stock class can't"
"""What to do where a serving profile stands in the way."""


@attrs.frozen(eq=False)
class Demands:
    """Settings that follow from a serving profile.

    Attributes:
        source: The argument that asked for the profile, ``serve="transformers"``.
        layers: Layers whose sizes stay, as the configuration can't say others.
        asked: Each setting that follows from the profile, to its value.
        instead: The same, to the values that they would have without it.
        ties: Names of groups that keep the same number of units, as one number says all their sizes.
        counts: Groups of whole heads to the numbers of heads that the configuration can say, ascending; where it can
            say no other one than there are, it is the only one.
    """

    source: str
    layers: tuple[str, ...] = ()
    asked: Mapping[str, Any] = attrs.field(factory=dict)
    instead: Mapping[str, Any] = attrs.field(factory=dict)
    ties: tuple[frozenset[str], ...] = ()
    counts: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict)

    @property
    def kept(self) -> str:
        """Why the layers keep their sizes."""
        return f"kept by {self.source}: its configuration can't say another size"

    @property
    def text(self) -> str:
        """What all of it is."""
        layers = f"keeps the sizes of {', '.join(self.layers)}" if self.layers else ""
        settings = (
            f"asks for {', '.join(f'{name}={value}' for name, value in self.asked.items())}" if self.asked else ""
        )
        return f"{self.source} {' and '.join(filter(None, (settings, layers)))}"

    def about(self, setting: str) -> str:
        """Says that a setting follows from the profile; empty where it doesn't."""
        return f", as {self.source} asks" if setting in self.asked else ""

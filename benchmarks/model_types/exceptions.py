"""What the general way of building a model type doesn't know: fields, classes, inputs, and types left out, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

CHANGES: Mapping[str, Mapping[str, Any]] = {}
"""Fields of a configuration by path, where the general sizes don't fit together."""

CLASSES: Mapping[str, str] = {}
"""Classes other than the first with a head."""

OWN_INPUTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {}

LEFT_OUT: Mapping[str, str] = {}
"""Types that can't be built here, and why."""

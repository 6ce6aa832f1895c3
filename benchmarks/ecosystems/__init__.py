"""Models of other libraries, built small and with random weights: package, name, and how it is built.

A package is only imported when one of its models is built. ``requirements.txt`` says what has to be installed, in an
environment of its own, since some of the packages replace others' versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ecosystems import diffusion, graphs, learners, pictures, sequences

MODELS: Mapping[str, Mapping[str, Callable[[], tuple[Any, ...]]]] = {
    **diffusion.MODELS,
    **graphs.MODELS,
    **pictures.MODELS,
    **sequences.MODELS,
    **learners.MODELS,
}
"""What a factory returns: the model, its inputs, and options of `zoo_models.Example`."""

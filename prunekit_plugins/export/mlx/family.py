"""What mlx-lm computes of a family of models, where that is less than its configuration in transformers can say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

Cut = Callable[[torch.Tensor, Any], Sequence[torch.Tensor]]
"""Makes tensors of mlx-lm of one of transformers, by the configuration."""


@attrs.frozen
class Change:
    """Tensors that have other names in mlx-lm, or another layout.

    Attributes:
        old: What their names in transformers end with.
        new: What the names of those in mlx-lm end with instead.
        cut: Makes these, one for each name.
    """

    old: str
    new: tuple[str, ...]
    cut: Cut


def nothing_more(config: Any) -> Mapping[str, Any]:
    """Adds no field."""
    return {}


def no_limits(config: Any) -> Iterator[str]:
    """Refuses nothing."""
    yield from ()


@attrs.frozen
class MlxFamily:
    """How mlx-lm builds the models of one class of transformers.

    Attributes:
        kind: Its type of model, a module in ``mlx_lm.models``.
        only: Field of the configuration to the values that it computes with; models with other ones are refused. A
            field that isn't there has the first of them.
        rotary: Kinds of rotary positions that it computes as transformers does.
        windows: Whether layers may see a window of the tokens.
        square: Whether it computes the width of a head as the width of the layers divided by the number of heads.
        tied: Whether its head may be the embedding; otherwise the head is written as a tensor of its own.
        changes: Tensors that it holds in another form.
        said: Adds fields to the configuration that transformers leaves out or calls otherwise.
        limits: Says what else it doesn't compute, one reason each.
    """

    kind: str
    only: Mapping[str, tuple[Any, ...]]
    rotary: frozenset[str]
    windows: bool = False
    square: bool = False
    tied: bool = True
    changes: tuple[Change, ...] = ()
    said: Callable[[Any], Mapping[str, Any]] = nothing_more
    limits: Callable[[Any], Iterator[str]] = no_limits

"""What a program decides by value: where real numbers become integers, booleans or Python numbers.

Comparisons, chosen positions (``topk``, ``nms``, ``nonzero``) and ``item()`` lead a program to one of its paths. Which
operations decide shows in their dtypes: they read real numbers and return something discrete. A recording on real
tensors remembers what was decided, and a replay with other weights is answered from it, so that it takes the recorded
path. Whatever is computed from discrete values only follows by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from prunekit_core.modules.surgery import select_positions
from prunekit_core.program.calls import tensors_of
from prunekit_core.program.rules import rule_keys
from prunekit_core.program.trace import is_continuous
from prunekit_core.torch_private.trees import pytree

Answers = tuple[Any, ...]
"""What an operation decided, per output: a tensor, a Python number, or None for real numbers that are computed."""


def real_numbers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Lists the tensors of real (or complex) numbers that an operation reads."""
    return [tensor for tensor in tensors_of([*args, *kwargs.values()]) if is_continuous(tensor.dtype)]


def decided(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Answers | None:
    """Returns what an operation has decided, copied; None if it decides nothing."""
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    number = isinstance(result, bool | int | float | complex)
    if not number and all(is_continuous(output.dtype) for output in outputs):
        return None
    if not real_numbers(args, kwargs):
        return None
    if number:
        return (result,)
    everything = torch.Tag.dynamic_output_shape in rule_keys(op)  # real numbers beside, as many as were decided on
    return tuple(output.clone() if everything or not is_continuous(output.dtype) else None for output in outputs)


def answered(answers: Answers, cuts: Iterable[Mapping[int, torch.Tensor]], args: Sequence[Any], result: Any) -> Any:
    """Returns the result of an operation with what was decided put in.

    Args:
        answers: What was decided when the program was recorded.
        cuts: Per output, the positions that stay along dims that shrink.
        args: The arguments of the operation.
        result: What it returned now.
    """
    leaves, form = pytree.tree_flatten(result)
    if len(leaves) == 1 and not isinstance(leaves[0], torch.Tensor):
        return answers[0]
    places = iter(zip(answers, cuts, strict=True))
    made = [_put_in(leaf, *next(places), args) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(made, form)


def _put_in(
    tensor: torch.Tensor, answer: torch.Tensor | None, cut: Mapping[int, torch.Tensor], args: Sequence[Any]
) -> torch.Tensor:
    if answer is None:
        return tensor
    fresh = select_positions(answer, cut)
    if is_continuous(answer.dtype) and fresh.shape == tensor.shape:
        return tensor  # as many as were decided on: `linalg.lstsq` solves as it did
    if any(tensor is arg for arg in args):
        return tensor.copy_(fresh)  # written in place
    return fresh.clone() if fresh is answer else fresh

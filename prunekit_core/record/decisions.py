"""What a program decides by value: where real numbers become integers, booleans or Python numbers.

Comparisons, chosen positions (``topk``, ``nms``, ``nonzero``) and ``item()`` lead a program to one of its paths. Which
operations decide shows in their dtypes: they read real numbers and return something discrete. A recording on real
tensors remembers what was decided, and a replay with other weights is answered from it, so that it takes the recorded
path. Whatever is computed from discrete values only follows by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.modules.surgery import select_positions
from prunekit_core.program.calls import bind_arguments, operation_name, tensors_of
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


@attrs.frozen(eq=False)
class ChosenFrom:
    """Which positions an operation may choose (``topk``, ``argmax``).

    Attributes:
        argument: The argument that it chooses from.
        dim: The dim of that argument along which the units lie.
        positions: The positions that may be chosen: tensor ``[n]``, int64, on the CPU, ascending.
        output: Which output holds the chosen positions.
    """

    argument: str
    dim: int
    positions: torch.Tensor
    output: int

    def run(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs the operation as if all other units were at minus infinity."""
        arguments = bind_arguments(op, args, kwargs)
        source = arguments[self.argument]
        arguments[self.argument] = source.index_select(self.dim, self.positions.to(source.device))
        return with_output(op(**arguments), self.output, self.among_all)

    def among_all(self, found: torch.Tensor) -> torch.Tensor:
        """Returns the positions among all units of positions among those that may be chosen."""
        return self.positions.to(found.device)[found]

    def among_these(self, found: torch.Tensor) -> torch.Tensor:
        """Returns the positions among those that may be chosen of positions among all units."""
        return torch.searchsorted(self.positions.to(found.device), found)

    def chosen(self, result: Any) -> torch.Tensor:
        """Returns the chosen positions out of what the operation returned."""
        return tensors_of(result)[self.output]


def with_output(result: Any, output: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns what an operation returned, with one of its tensors changed."""
    leaves, form = pytree.tree_flatten(result)
    place = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)][output]
    leaves[place] = change(leaves[place])
    return pytree.tree_unflatten(leaves, form)


Choose = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], Any]
"""Returns what an operation returned, with another choice in it."""


@attrs.frozen(eq=False)
class Choices:
    """Choices that are made in the place of a program while it is recorded.

    Attributes:
        made: (name of the operation, how many of that name ran before it) to how it is made.
        assumed: Whether the program would not choose so itself: then what it computes is not what it would compute.
    """

    made: Mapping[tuple[str, int], Choose]
    assumed: bool


class ChoiceMaker:
    """Makes choices in the place of a program, in one run of it.

    Args:
        choices: See `Choices.made`.
    """

    def __init__(self, choices: Mapping[tuple[str, int], Choose]) -> None:
        self._choices = choices
        self._ran: dict[str, int] = {}

    def __call__(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Returns the result of an operation, with the choice that was made for it."""
        name = operation_name(op)
        count = self._ran[name] = self._ran.get(name, -1) + 1
        choose = self._choices.get((name, count))
        return result if choose is None else choose(op, args, kwargs, result)

"""Outputs of a layer with many of them, such as a vocabulary, whose squares are added up without making them."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from prunekit_core.program.calls import written_arguments
from prunekit_core.program.rules import ModuleOp
from prunekit_core.program.trace import TensorRef, tensor_refs
from prunekit_plugins.calibration.branch_replays import Program, Step

MANY = 4096
"""Outputs from which a layer's aren't made: only there it takes longer than all the rest."""
ROWS = 4096
"""Rows of a weight whose products are made at a time."""
_LINEAR = torch.ops.aten.linear.default


@attrs.frozen(eq=False)
class Product:
    """What a linear layer without a bias puts out, ``features @ weight.T``, not made yet.

    Attributes:
        features: Tensor ``[..., features]``.
        weight: Tensor ``[outputs, features]``.
    """

    features: torch.Tensor
    weight: torch.Tensor

    def made(self) -> torch.Tensor:
        """Returns the outputs, ``[..., outputs]``."""
        with torch.inference_mode():
            return nn.functional.linear(self.features, self.weight)

    def beside(self, other: Product) -> bool:
        """Whether both are made with one weight, in memory that they share, of features of one shape."""
        one, two = self.weight, other.weight
        alike = (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        return alike and one.data_ptr() == two.data_ptr() and self.features.shape == other.features.shape


Output = torch.Tensor | Product
"""What a model returns."""


def made(output: Output) -> torch.Tensor:
    """Returns an output as a tensor."""
    return output.made() if isinstance(output, Product) else output


def find_product(program: Program) -> int | None:
    """Finds the last operation of a program that is a linear layer without a bias whose outputs the model returns.

    It has at least `MANY` outputs, nothing else in the program uses them, its weight isn't on disk, and what comes
    behind it writes to nothing.

    Returns:
        Its place; None where there is none.
    """
    returned = {number for _, number in program.outputs}
    read = {ref.index for step in program.steps for ref in tensor_refs(list(step.arguments.values()))}
    for place in reversed(range(len(program.steps))):
        step = program.steps[place]
        if _is_product(step, program) and step.outputs[0] in returned - read:
            return place
        if isinstance(step.op, ModuleOp) or written_arguments(step.op):
            return None
    return None


def _is_product(step: Step, program: Program) -> bool:
    if step.op is not _LINEAR or step.arguments["bias"] is not None or step.shapes[0][-1] < MANY:
        return False
    refs = [step.arguments[name] for name in ("input", "weight")]
    return all(isinstance(ref, TensorRef) and ref.index not in program.stored for ref in refs)


class Grams:
    """``W^T W`` of weights, each made once: with it, squares of ``W x`` are added up for every sample ``x``."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns that of a weight that isn't changed between calls: tensor ``[features, features]``, float64."""
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        known = self._known.get(place)
        if known is None:
            with torch.inference_mode():
                total = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
                for part in weight.split(ROWS):
                    wide = part.double()
                    total.addmm_(wide.T, wide)
            known = self._known[place] = (weight, total)
        return known[1]

    def squares(self, features: torch.Tensor, weight: torch.Tensor) -> float:
        """Returns the sum of squares of ``features @ weight.T``.

        Args:
            features: Tensor ``[..., features]``, finite.
            weight: Tensor ``[outputs, features]``.
        """
        wide = features.flatten(0, -2).double()
        return max(0.0, float(((wide @ self.of(weight)) * wide).sum()))

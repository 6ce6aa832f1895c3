"""Statistics of the experts of a mixture on calibration data, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

TENSORS = ("routed", "weighted", "error", "damage", "products", "weighed_products")
"""The attributes that are tensors; all but the first may be None."""
OF_NEURONS = "neurons."
"""What the names of tensors of neurons start with."""


@attrs.frozen(eq=False)
class ExpertStatistics:
    """What calibration data say about the experts of one mixture.

    Most tensors have one number for each unit of the group: an expert, or the experts at the same place of every group
    of experts. They are of all tokens that count.

    Attributes:
        top_k: How many experts a token is sent to.
        tokens: Number of tokens.
        examples: Number of examples that they come from.
        routed: Tensor ``[units]``, int64: how often a token was sent to an expert of the unit.
        energy: The sum over tokens of the squared norm of what the mixture puts out, shared experts apart.
        weighted: Tensor ``[units]``, float64: the sum of ``g_j(x) ||f_j(x)||_2`` over these; None if not gathered.
        error: Tensor ``[units]``, float64: the sum over these tokens of the squared change of what the mixture puts out
            if the unit can't be chosen, and they are sent to others as the model does it. None if not gathered.
        damage: Tensor ``[units]``, float64: the expected squared change of the outputs of the model, summed up over
            these tokens; None where there are no gradients.
        effect: The same if the mixture puts out nothing; None likewise.
        stacks: Names of the parameters that hold the weights of the experts.
        neurons: Name of each group of the experts' neurons to a tensor ``[neurons]``, float64: the expected squared
            change of the outputs of the model, to first order, if nothing reads the neuron, in each expert by itself,
            summed up over these. Empty where there are no gradients.
        products: Tensor ``[units, units]``, float64: the sum over tokens of ``c_i(x)^T c_j(x)``, with
            ``c_j(x) = g_j(x) f_j(x)`` what unit ``j`` adds to what the mixture puts out for a token; zero where the
            token isn't sent to it. None if not gathered.
        weighed_products: The same of ``c_i(x)^T G c_j(x)``, with ``G`` how the outputs of the model move, squared, with
            what the mixture puts out; None where there are no gradients.
    """

    top_k: int
    tokens: int
    examples: int
    routed: torch.Tensor
    energy: float
    weighted: torch.Tensor | None = None
    error: torch.Tensor | None = None
    damage: torch.Tensor | None = None
    effect: float | None = None
    stacks: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    neurons: Mapping[str, torch.Tensor] = attrs.field(factory=dict)
    products: torch.Tensor | None = None
    weighed_products: torch.Tensor | None = None

    @property
    def unreached(self) -> tuple[int, ...]:
        """The units that no token was sent to: nothing is known about them."""
        found: list[int] = (self.routed == 0).nonzero().flatten().tolist()
        return tuple(found)

    def notes(self, group: str) -> tuple[str, ...]:
        """Says which units were never reached.

        Args:
            group: The name of the group.
        """
        if not self.unreached:
            return ()
        many = "expert" if len(self.unreached) == 1 else "experts"
        named = f"{many} {', '.join(map(str, self.unreached))} of {len(self.routed)}"
        return (f"{group}: calibration never reached {named}: unknown, not worthless, they stay",)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that are there, by the name of their attribute; those of neurons with their group."""
        values = {name: getattr(self, name) for name in TENSORS}
        values |= {f"{OF_NEURONS}{group}": neurons for group, neurons in self.neurons.items()}
        return {name: value.cpu() for name, value in values.items() if value is not None}

    def rest(self) -> dict[str, Any]:
        """Returns everything else."""
        apart = (*TENSORS, "neurons")
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self)) if field.name not in apart}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> ExpertStatistics:
        """Makes them from what `tensors` and `rest` return."""
        neurons = {name.removeprefix(OF_NEURONS): one for name, one in tensors.items() if name.startswith(OF_NEURONS)}
        others = {name: one for name, one in tensors.items() if not name.startswith(OF_NEURONS)}
        values: dict[str, Any] = {**rest, **others}
        return cls(**values, neurons=neurons)

"""Merging experts: those that stay are averaged with the ones whose tokens they take over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch

from prunekit_core.errors import ArgumentError, many
from prunekit_core.modules.surgery import scale_rows, select_positions
from prunekit_core.program.op_call import Kind
from prunekit_plugins.calibration.branch_sums import recorded_position
from prunekit_plugins.calibration.experts.search import find_mixtures
from prunekit_plugins.compensation.experts.handover import Handover, handovers
from prunekit_plugins.compensation.experts.holders import Values
from prunekit_plugins.compensation.experts.weights import ExpertWeights, average
from prunekit_plugins.compensation.least_squares import PARTS
from prunekit_plugins.compensation.repair import ALONE, Repair


@attrs.frozen(eq=False)
class _Mixture:
    """A mixture that loses experts.

    Attributes:
        experts: The weights of its experts.
        leave: The units that leave.
        tokens: What becomes of their tokens.
    """

    experts: ExpertWeights
    leave: Sequence[int]
    tokens: Handover


class MergeExperts:
    """Merges experts that leave into those that stay and take their tokens over.

    With ``n_s`` the number of tokens that are sent to expert ``s`` and ``t_es`` the number of those of expert ``e``
    that are sent to ``s`` once all that leave can't be chosen, the weights of ``s`` become
    ``(n_s W_s + sum over e of t_es P_e W_e) / (n_s + sum over e of t_es)``. ``P_e`` puts the neurons of ``e`` in the
    order in which their weights are most like those of ``s``, by optimal assignment. The router stays as it was cut.
    Averages of aligned experts, weighted by how often they are chosen, are from Li et al., *Merge, Then Compress:
    Demystify Efficient SMoE with Hints from Its Routing Policy*, ICLR 2024 (M-SMoE), where the router keeps its rows
    and experts are grouped by its scores; here the router of the pruned model says who takes which token.

    One mixture after another gets the part of its change (one of `PARTS`) with which the model's outputs have the least
    error on examples that were held out, or nothing where none of them is better than the plain cut.

    Args:
        into: Into how many experts one is merged at most: those that take most of its tokens. None for all that take
            any.

    Raises:
        ArgumentError: ``into`` is no positive integer.
    """

    def __init__(self, into: int | None = None) -> None:
        if into is not None and (not isinstance(into, int) or into < 1):
            raise ArgumentError("into must be a positive integer.", why=f"got {into!r}")
        self.into = into

    def __call__(self, repair: Repair) -> None:
        """Merges the experts of mixture after mixture, in the order of the program."""
        leave = _leaving(repair)
        if leave and repair.held_out.examples < 2:
            repair.left |= dict.fromkeys(leave, f"merge_experts: {ALONE}")
            return
        error = repair.output_error(held=True) if leave else 0.0
        for mixture in self._mixtures(repair, leave):
            values = {name: repair.original.values(name) for name in mixture.experts.parameters}
            error = _settle(repair, mixture, values, self.merged(mixture.experts, values, mixture.tokens), error)

    def _mixtures(self, repair: Repair, leave: Mapping[str, Sequence[int]]) -> Iterator[_Mixture]:
        """Yields the mixtures whose experts can be merged, and notes why others can't."""
        analysis = repair.analysis
        found = find_mixtures(analysis, recorded_position(analysis))
        why = {name: found.missed[name] for name in leave if name in found.missed}
        tensors = repair.original.shadow.tensors()
        real = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
        seen = {name: units for name, units in leave.items() if name in found.mixtures}
        tokens = handovers(repair.original, found, seen, repair.batches(held=False)) if seen else {}
        for name, units in seen.items():
            experts = ExpertWeights.of(analysis.groups[name], found.mixtures[name].stacks, analysis, real)
            if name not in tokens:
                why[name] = "a calibration batch runs another program than the example inputs"
            elif isinstance(experts, str):
                why[name] = experts
            elif not bool(tokens[name].taken.any()):
                why[name] = "calibration sent no token to those that leave"
            else:
                yield _Mixture(experts, units, tokens[name])
        repair.left |= {name: f"merge_experts: {reason}" for name, reason in why.items()}

    def merged(self, experts: ExpertWeights, values: Values, tokens: Handover) -> dict[str, torch.Tensor]:
        """Returns the weights with merged experts, in the shapes before the cut.

        Args:
            experts: Where the weights are.
            values: The tensors that hold them.
            tokens: What becomes of the tokens of those that leave.
        """
        merged = {name: tensor.clone() for name, tensor in values.items()}
        taken = tokens.taken if self.into is None else _most(tokens.taken, self.into)
        for unit in taken.sum(0).nonzero().flatten().tolist():
            others = taken[:, unit].nonzero().flatten().tolist()
            shares = [float(tokens.routed[unit]), *taken[others, unit].tolist()]
            for number in experts.numbers:
                own = experts.weights(values, unit, number)
                aligned = [experts.aligned(experts.weights(values, other, number), own) for other in others]
                for name, mean in average([own, *aligned], shares).items():
                    experts.holders[name].put(merged, mean, unit, number)
        return merged


def _leaving(repair: Repair) -> dict[str, Sequence[int]]:
    """Lists the experts that leave, by group; groups that lose none aren't there."""
    kept = repair.plan.kept
    return {
        name: sorted(set(range(group.size)) - set(kept[name]))
        for name, group in repair.analysis.groups.items()
        if group.kind is Kind.EXPERTS and name in kept
    }


def _most(taken: torch.Tensor, into: int) -> torch.Tensor:
    """Leaves only the largest numbers of each row."""
    best = taken.topk(min(into, taken.shape[1])).indices
    return torch.zeros_like(taken).scatter_(1, best, taken.gather(1, best))


def _settle(repair: Repair, mixture: _Mixture, values: Values, merged: Values, before: float) -> float:
    """Keeps the part of the change that does best on what was held out; returns the error of the outputs there."""
    name, after = mixture.experts.group.name, repair.plan.renaming.after
    stay = {tensor: new for tensor in values if (new := after(tensor)) is not None}
    old = {new: repair.values(new).clone() for new in stay.values()}
    change = {
        new: _cut(repair, tensor, merged[tensor]) - _cut(repair, tensor, values[tensor]) for tensor, new in stay.items()
    }
    errors = {}
    for part in PARTS:
        _write(repair, old, change, part)
        errors[part] = repair.output_error(held=True)
    part = min(errors, key=errors.__getitem__)
    if not errors[part] < before:
        _write(repair, old, change, 0.0)
        worse = f"held-out output error {before:.3g} -> {errors[part]:.3g}"
        repair.left[name] = f"merge_experts would make it worse ({worse})"
        return before
    _write(repair, old, change, part)
    detail = f"held-out error of the model's outputs, {many(len(mixture.leave), 'expert')} merged"
    repair.record(name, before, errors[part], detail + (f", {part:.0%} of the change" if part < 1 else ""))
    return errors[part]


def _cut(repair: Repair, name: str, values: torch.Tensor) -> torch.Tensor:
    """Cuts and scales a tensor as the plan does: a tensor of float64."""
    values = values.double()
    for rescale in repair.plan.rescales:
        if rescale.parameter == name:
            values = values.clone()
            scale_rows(values, rescale.rows, rescale.factor)
    cut = next((cut for cut in repair.plan.parameters if cut.parameter == name), None)
    return values if cut is None else select_positions(values, repair.plan.positions(cut))


def _write(repair: Repair, old: Values, change: Values, part: float) -> None:
    for name, values in old.items():
        repair.write(name, values if part == 0 else (values.double() + part * change[name]).to(values))

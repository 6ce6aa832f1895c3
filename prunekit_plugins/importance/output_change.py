"""Branches by what the model returns without them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from prunekit.plugin import ArgumentError, BranchGroup, BranchNeed, Group, SeenBranch

_MEASURES = ("auto", "kl", "error")


class OutputChangeImportance:
    """Branches matter if the outputs change with them switched off.

    Each branch is switched off alone and the model runs on all batches; then the least important one goes, and all
    others are measured anew without it (Zhang et al., FinerCut: Finer-grained Interpretable Layer Pruning for Large
    Language Models, 2024). It is the dearest criterion, with about half as many forward passes as there are
    branches for every branch that goes, and the one that measures what counts.

    Args:
        measure: ``"kl"``: the mean Kullback-Leibler divergence of the softmax of the outputs called ``logits`` (of a
            single output, whatever its name) from that of the whole model, in nats. ``"error"``: the squared error of
            the outputs relative to their squares, a mean over outputs. ``"auto"``: ``"kl"`` where an output is called
            ``logits``, else ``"error"``.
        greedy: Whether branches are measured anew after each removal.

    Raises:
        ArgumentError: There is no such measure.
    """

    def __init__(self, measure: str = "auto", *, greedy: bool = True) -> None:
        if measure not in _MEASURES:
            raise ArgumentError(
                "There is no such measure of outputs.", why=f"got {measure!r}", hint=f"one of {', '.join(_MEASURES)}"
            )
        self.measure, self.greedy = measure, greedy

    def __call__(self, group: Group) -> None:
        """Has nothing to say about the units of a group."""

    def branch(self, group: BranchGroup) -> OutputChange:
        """Returns what compares the outputs."""
        return OutputChange(self.measure)


class OutputChange:
    """Gathers how far outputs are from those of the whole model, over batches.

    Args:
        measure: See `OutputChangeImportance`.
    """

    needs = BranchNeed.OUTPUTS

    def __init__(self, measure: str) -> None:
        self._measure = measure
        self._divergence, self._rows = 0.0, 0
        self._wrong: dict[str, float] = {}
        self._whole: dict[str, float] = {}

    def add(self, seen: SeenBranch) -> None:
        """Takes one batch.

        Raises:
            ArgumentError: The measure is ``"kl"``, and no output is called logits.
        """
        logits = None if self._measure == "error" else _logits(seen.expected, only=self._measure == "kl")
        if logits is not None:
            self._diverge(seen.outputs[logits], seen.expected[logits])
        elif self._measure == "kl":
            raise ArgumentError(
                "No output is called logits.", why=f"there are {', '.join(seen.expected)}", hint='measure="error"'
            )
        else:
            for name, expected in seen.expected.items():
                self._differ(name, seen.outputs[name], expected)

    def _diverge(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        without, whole = (values.float().log_softmax(-1) for values in (found, expected))
        self._divergence += float(F.kl_div(without, whole, reduction="sum", log_target=True))
        self._rows += len(expected)

    def _differ(self, name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        finite = expected.isfinite()
        gap = found[finite].double() - expected[finite].double()
        self._wrong[name] = self._wrong.get(name, 0.0) + float(gap.square().sum())
        self._whole[name] = self._whole.get(name, 0.0) + float(expected[finite].double().square().sum())

    def score(self) -> float | None:
        """Returns the divergence in nats, or the relative squared error; None where nothing could be compared."""
        if self._rows:
            return self._divergence / self._rows
        parts = [wrong / self._whole[name] for name, wrong in self._wrong.items() if self._whole[name]]
        return sum(parts) / len(parts) if parts else None


def _logits(outputs: Mapping[str, torch.Tensor], *, only: bool) -> str | None:
    """Returns the name of the output that holds logits: a single one does, if ``only``."""
    named = [name for name in outputs if name.rpartition(".")[2] == "logits"]
    return named[0] if named else next(iter(outputs)) if only and len(outputs) == 1 else None

"""Cost models: what a model costs when only some of its units stay, as a function of the sizes of its groups."""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.algebra.layout import Kept
from prunekit_core.algebra.polynomial import Evaluator, Polynomial, Sizes, compile_polynomials
from prunekit_core.errors import PrunekitError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.examples import Example

Compiled = Callable[[Sizes], float]
"""A cost as a function of the number of units that each group keeps (a group that is absent keeps all)."""

WRONG_COST = "A cost model can't be computed."


class CostModel:
    """What a model costs; derive from it where a plain function ``(analysis, kept) -> float`` is not enough.

    A search for a target asks for the cost of thousands of candidates: `compile` does once what all of them share.

    Attributes:
        unit: What the cost is counted in, for people: ``"bytes"``; empty for plain numbers.
        previewed: Whether every preview shows this cost; False where computing it takes long.
        measured: Whether the cost is measured: `compile` then only predicts it, and plans are corrected by `measure`.
    """

    unit: str = ""
    previewed: bool = True
    measured: bool = False

    def compile(self, analysis: Analysis) -> Compiled:
        """Makes the cost a function of group sizes.

        Args:
            analysis: The analysed model.

        Returns:
            A function from sizes (`Sizes`) to the cost. It must not grow when a group gets smaller, and should take
            well under a millisecond.
        """
        raise NotImplementedError

    def absolute(self, value: float | str) -> float:
        """Returns what a target above one (or a text such as ``"4.1G"``) means, in the unit of the cost.

        Args:
            value: A number, or a number with k, M, G or T (thousands) or Ki, Mi, Gi or Ti (powers of 1024) behind it,
                and ``B`` for bytes.

        Raises:
            ValueError: The text can't be read.
        """
        if not isinstance(value, str):
            return float(value)
        found = re.fullmatch(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([kKMGT]?i?)(B?)\s*", value)
        if found is None or (found[3] and self.unit != "bytes"):
            raise ValueError(f"no amount: {value!r}")
        power = " KMGT".index(found[2][0].upper()) if found[2].rstrip("i") else 0
        base = 1024.0 if found[2].endswith("i") else 1000.0
        return float(found[1]) * math.pow(base, power)

    def measure(self, before: nn.Module, after: nn.Module, example: Example) -> tuple[float, float]:
        """Measures two models, for cost models that are `measured`.

        Args:
            before: The model as it is.
            after: A pruned copy of it.
            example: What to run them on.

        Returns:
            The costs of both.
        """
        raise NotImplementedError

    def text(self, cost: float) -> str:
        """Writes a cost for people."""
        return f"{cost:,.0f}" + (f" {self.unit}" if self.unit else "")

    def __call__(self, analysis: Analysis, kept: Kept) -> float:
        """Returns the cost when only the kept units stay."""
        return self.compile(analysis)({name: len(units) for name, units in kept.items()})


class FunctionCost(CostModel):
    """A cost model that is a function ``(analysis, kept) -> float`` of how many units are kept, not of which.

    Args:
        function: The function. While a target is searched, the kept units that it is given are ``0, 1, 2, ...``
    """

    def __init__(self, function: Callable[[Analysis, Kept], float]) -> None:
        self._function = function

    def compile(self, analysis: Analysis) -> Compiled:
        """Calls the function for every candidate."""

        def cost(sizes: Sizes) -> float:
            return self._function(analysis, {name: range(size) for name, size in sizes.items()})

        return cost

    def __call__(self, analysis: Analysis, kept: Kept) -> float:
        """Calls the function."""
        return self._function(analysis, kept)


def cost_model(registered: Any) -> CostModel:
    """Returns what is registered through ``prunekit_budgets`` as a cost model."""
    return registered if isinstance(registered, CostModel) else FunctionCost(registered)


def compiled_cost(registry: Registry, name: str, analysis: Analysis) -> Compiled:
    """Makes a registered cost a function of group sizes; a mistake is an error of the plugin that brought it.

    Raises:
        ArgumentError: Nothing is registered under the name.
        PluginError: The cost model raises, or returns something else than a finite number from 0; so does the
            function, later.
    """
    registered = registry.named("prunekit_budgets", name)
    blame = registry.owners.blame("prunekit_budgets", registered)
    with blame.blamed(WRONG_COST):
        compiled = cost_model(registered).compile(analysis)

    return _Checked(compiled, blame)


@attrs.frozen
class _Checked:
    """A compiled cost whose mistakes are errors of whoever brought it."""

    compiled: Compiled
    blame: Blame

    def __call__(self, sizes: Sizes) -> float:
        with self.blame.blamed(WRONG_COST):
            found = self.compiled(sizes)
        return checked_cost(found, self.blame)

    def each(self, sizes: Sizes, changes: Sequence[Sizes]) -> list[float]:
        """The cost after each of several changes of some sizes, without the others."""
        with self.blame.blamed(WRONG_COST):
            found = costs_after(self.compiled, sizes, changes)
        return [checked_cost(one, self.blame) for one in found]


def costs_after(cost: Compiled, sizes: Sizes, changes: Sequence[Sizes]) -> list[float]:
    """Computes a cost after each of several changes of some sizes, without the others: a polynomial all at once."""
    if isinstance(cost, _Checked | _Sum):
        return cost.each(sizes, changes)
    return [cost({**sizes, **change}) for change in changes]


class PreviewedCosts:
    """The costs that every preview shows.

    Whoever prunes for another cost needs none of them, so a plugin's that can't be computed is left out of the preview,
    with a note. One of prunekit's own is an error.

    Args:
        registry: Where cost models are found.
        analysis: The analysed model.
        skipped: Takes the name of each cost that is left out, with a note that says why and whose it is.

    Raises:
        PluginError: A cost model of prunekit's own is wrong.
    """

    def __init__(self, registry: Registry, analysis: Analysis, skipped: MutableMapping[str, str]) -> None:
        self._skipped = skipped
        self._compiled: dict[str, tuple[Compiled, Blame]] = {}
        for name, entry in registry.entries("prunekit_budgets").items():
            blame = registry.owners.blame("prunekit_budgets", entry.value)
            with self._skipping(name, blame):
                with blame.blamed(WRONG_COST):
                    previewed = cost_model(entry.value).previewed
                if previewed:
                    self._compiled[name] = (compiled_cost(registry, name, analysis), blame)

    def at(self, *selections: Sizes) -> dict[str, tuple[float, ...]]:
        """Computes the costs.

        Args:
            selections: Sizes of groups.

        Returns:
            Name of each cost model to the cost of every selection.

        Raises:
            PluginError: See the class.
        """
        found: dict[str, tuple[float, ...]] = {}
        for name, (cost, blame) in self._compiled.items():
            with self._skipping(name, blame):
                found[name] = tuple([cost(sizes) for sizes in selections])
        return found

    @contextlib.contextmanager
    def _skipping(self, name: str, blame: Blame) -> Iterator[None]:
        try:
            yield
        except PrunekitError as error:
            if blame.built_in:
                raise
            self._skipped[name] = (
                f"previews leave out the cost {name!r}: {error.headline} {error.why} [{blame.where}] {error.hint}"
            )


def checked_cost(found: object, blame: Blame) -> float:
    """Returns a cost as a number.

    Args:
        found: What a cost model computed or measured: a number, or a tensor with one element.
        blame: Whose the cost model is.

    Raises:
        PluginError: It is no number, not finite, or negative.
    """
    plain = isinstance(found, numbers.Real) and not isinstance(found, bool)
    if not plain and not (isinstance(found, torch.Tensor) and found.numel() == 1 and not found.is_complex()):
        raise blame.error(WRONG_COST, f"it returned {found!r}, which is no number")
    value = float(found)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise blame.error(WRONG_COST, f"it is {value}")
    if value < 0:
        raise blame.error(WRONG_COST, f"it is {value:g}, and nothing costs less than nothing")
    return value


def group_sizes(analysis: Analysis) -> dict[str, int]:
    """Returns the number of units of every group at analysis."""
    return {name: group.size for name, group in analysis.groups.items()}


@attrs.frozen
class _Sum:
    """A cost that is one polynomial."""

    evaluate: Evaluator

    def __call__(self, sizes: Sizes) -> float:
        return float(self.evaluate(sizes).item())

    def each(self, sizes: Sizes, changes: Sequence[Sizes]) -> list[float]:
        """The cost after each of several changes of some sizes, without the others."""
        return list(map(float, self.evaluate.each(sizes, changes)[:, 0].tolist()))


def compile_sum(polynomial: Polynomial, analysis: Analysis) -> Compiled:
    """Makes a cost out of one polynomial in the sizes of groups."""
    return _Sum(compile_polynomials([polynomial], group_sizes(analysis)))

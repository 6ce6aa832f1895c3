"""Ridge least squares: the units that stay take over what the removed ones did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch

from prunekit.plugin import ArgumentError, Moments
from prunekit_plugins.compensation.layer_fit import LayerFit
from prunekit_plugins.compensation.repair import ALONE, Repair

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
PARTS = (1.0, 0.75, 0.5, 0.25)
"""Parts of a change that are compared on the examples that were held out."""


@attrs.frozen
class Choice:
    """How one consumer is fitted.

    Attributes:
        ridge: A multiple of the mean variance of a feature.
        shrunk: Whether covariances are shrunk.
        part: How much of the change is kept.
        error: The error on the examples that were held out; that of all of the change where no part is kept.
    """

    ridge: float
    shrunk: bool
    part: float
    error: float

    def __str__(self) -> str:
        """For the report."""
        more = (", shrunk" if self.shrunk else "") + (f", {self.part:.0%} of the change" if self.part < 1 else "")
        return f"ridge {self.ridge:.0e}{more}"


class LeastSquares:
    """Fits the weights of every consumer that lost inputs to what it put out before the cut.

    A consumer that takes over removed branches is fitted to the sum that they were added to.

    With ``C`` the covariance of what it reads now, ``P`` that of it and of what it should put out, and ``W`` its weight
    as cut: ``W' = W + (P^T - W C) (C + lambda I)^-1`` and ``b' = E[y] - W' E[x]``, which minimises
    ``E||y - W' x - b'||^2 + lambda ||W' - W||^2``. While what it reads is what it read before the cut, less the removed
    units ``R``, that is ``W' = W_K + W_R B^T`` with ``B = (C_KK + lambda I)^-1 C_KR``. ``lambda`` is a multiple of the
    mean variance of a feature: of the ``ridges``, and of those halfway to the best one's neighbours, the one with the
    least error on examples that were held out. There it is also decided whether covariances are shrunk, see
    `Equations`, and which part of the change is kept: one of `PARTS`, or nothing where none of them is better than the
    plain cut. The layer is then fitted in the same way to all examples.

    A consumer without a bias moves the mean of the norm that follows it; without one it is fitted through the origin.

    Args:
        ridges: Multiples to choose from.
        shrink: Whether covariances may be shrunk, and parts of a change kept; if not, it is all of the change or
            nothing.

    Raises:
        ArgumentError: A ridge is not positive.
    """

    def __init__(self, ridges: Sequence[float] = RIDGES, *, shrink: bool = True) -> None:
        if not ridges or not all(ridge > 0 for ridge in ridges):
            raise ArgumentError("Ridges must be positive numbers.", why=f"got {list(ridges)!r}")
        self.ridges, self.shrink = tuple(ridges), shrink

    def __call__(self, repair: Repair) -> None:
        """Fits consumer after consumer."""
        for problem in repair.layers():
            if problem.held is None:
                repair.left[problem.name] = f"least_squares: {ALONE}"
                continue
            training, everything = problem.both()
            choice = self._choice(problem, Equations(problem, training))
            final = Equations(problem, everything)
            solution = None if choice is None else final.solve(choice.ridge, shrunk=choice.shrunk)
            if choice is None or solution is None:
                repair.left[problem.name] = "least_squares: its covariance has no Cholesky factor"
                continue
            if not choice.part:
                before = problem.error(problem.weight, problem.offset, problem.held)
                worse = f"error {before:.3g} -> {choice.error:.3g}"
                repair.left[problem.name] = f"least_squares would make it worse ({worse})"
                continue
            repair.settle(problem, *partly(problem, *solution, choice.part), str(choice))

    def _choice(self, problem: LayerFit, equations: Equations) -> Choice | None:
        """Chooses on the examples that were held out; None where nothing can be solved."""
        tried = self._tried(problem, self.ridges, equations)
        if not tried:
            return None
        tried |= self._tried(problem, self._between(min(tried, key=tried.__getitem__)), equations)
        ridge = min(tried, key=tried.__getitem__)
        choices = []
        none = problem.error(problem.weight, problem.offset, problem.held)
        for shrunk in (False, True) if self.shrink else (False,):
            solution = equations.solve(ridge, shrunk=shrunk)
            if solution is not None:
                parts = PARTS if self.shrink else PARTS[:1]
                whole = tried[ridge] if not shrunk else problem.error(*solution, problem.held)
                choices.append(Choice(ridge, shrunk, *kept_part(problem, *solution, (none, whole), parts)))
        return min(choices, key=lambda choice: choice.error) if choices else None

    def _between(self, best: float) -> list[float]:
        """The ridges halfway, in their logarithms, between the best one and its neighbours."""
        ridges = sorted(self.ridges)
        place = ridges.index(best)
        beside = (*ridges[max(0, place - 1) : place], *ridges[place + 1 : place + 2])
        return [math.sqrt(best * other) for other in beside]

    def _tried(self, problem: LayerFit, ridges: Sequence[float], equations: Equations) -> dict[float, float]:
        """Errors on the examples that were held out, by ridge; a ridge without a finite one is left out."""
        found = {}
        for ridge in ridges:
            solution = equations.solve(ridge)
            error = math.nan if solution is None else problem.error(*solution, problem.held)
            if math.isfinite(error):
                found[ridge] = error
        return found


def kept_part(
    problem: LayerFit,
    weight: torch.Tensor,
    offset: torch.Tensor,
    ends: tuple[float, float],
    parts: Sequence[float] = PARTS,
) -> tuple[float, float]:
    """Finds the part of a change that does best on the examples that were held out.

    Args:
        problem: The consumer.
        weight: Tensor ``[groups, outputs, features]``: its weight with all of the change.
        offset: Tensor ``[groups, outputs]``.
        ends: The errors there with nothing of the change, and with all of it.
        parts: The parts to choose from.

    Returns:
        One of them with its error; 0 where none of them is better than nothing, with the error of the whole change.
    """
    none, whole = ends
    half = problem.error(*partly(problem, weight, offset, 0.5), problem.held)
    bend = 2 * (whole - 2 * half + none)  # the error is a parabola of the part
    errors = {part: none + part * (whole - none - bend) + part**2 * bend for part in parts}
    best = min(errors, key=errors.__getitem__)
    return (best, errors[best]) if errors[best] <= none else (0.0, whole)


def partly(
    problem: LayerFit, weight: torch.Tensor, offset: torch.Tensor, part: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight and the offset with a part of a change."""
    if part == 1:
        return weight, offset
    return torch.lerp(problem.weight, weight, part), torch.lerp(problem.offset, offset, part)


class Equations:
    """The normal equations of one consumer, to be solved for several ridges.

    Args:
        problem: The consumer.
        moments: What it is fitted to.
    """

    def __init__(self, problem: LayerFit, moments: Moments) -> None:
        self._problem, self._moments = problem, moments
        self._square, cross = _second(moments, problem)
        self._scale = self._square.diagonal(dim1=1, dim2=2).mean(1)
        self._gap = torch.baddbmm(cross, self._square, problem.weight.transpose(1, 2), alpha=-1)
        self._known = bool(self._scale.isfinite().all()) and bool((self._scale > 0).all())

    def solve(self, ridge: float, *, shrunk: bool = False) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Solves them for one ridge.

        Args:
            ridge: A multiple of the mean variance of a feature.
            shrunk: Whether covariances are shrunk: with the `shrinkage` ``rho``, ``(1 - rho) C + rho D`` stands for
                ``C``, where ``D`` is its diagonal, and ``(1 - rho) (P^T - W C)`` for what is missing, which adds
                ``rho / (1 - rho) D`` to the ridge.

        Returns:
            Weight ``[groups, outputs, features]`` and offset ``[groups, outputs]``; None where the matrix is singular.
        """
        weight, part = self._problem.weight, self._moments.shrinkage if shrunk else 0.0
        if not self._known:
            return None
        if part == 1:
            return weight, self._offset(weight)
        regular = self._square.clone()
        regular.diagonal(dim1=1, dim2=2).add_(ridge * self._scale[:, None] + part / (1 - part) * self._moments.variance)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if bool((failed != 0).any()):
            return None
        fitted = weight + torch.cholesky_solve(self._gap, factor).transpose(1, 2)
        return fitted, self._offset(fitted)

    def _offset(self, weight: torch.Tensor) -> torch.Tensor:
        problem = self._problem
        return problem.mean_error(weight, self._moments) if problem.movable else problem.offset


def _second(moments: Moments, problem: LayerFit) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments about the mean, or about zero where the offset can't be moved."""
    assert moments.covariance is not None
    assert moments.cross is not None
    assert moments.target_mean is not None
    if problem.movable:
        return moments.covariance, moments.cross
    mean = moments.mean
    goal = moments.target_mean - problem.offset
    return moments.covariance + mean[:, :, None] * mean[:, None], moments.cross + mean[:, :, None] * goal[:, None]

"""A pruned model beside the original on calibration data: what a compensator works with.

Everything happens on a copy of the pruned model; the model itself is written to when all is done.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import torch
from torch import nn

from prunekit_core.errors import nearest
from prunekit_core.groups.analysis import Analysis
from prunekit_core.modules.surgery import replace_values
from prunekit_core.modules.tree import named_tensors
from prunekit_core.plans.plan import Plan
from prunekit_core.plugins.blame import Blame
from prunekit_core.plugins.registry import Registry
from prunekit_plugins.calibration.batches import Batch, Batches
from prunekit_plugins.calibration.moments import Moments, doubts
from prunekit_plugins.calibration.observation import Run, Watched
from prunekit_plugins.checkpoints.stored_values import Scratch
from prunekit_plugins.compensation.gathering import Gathered, Pair, gather, portions
from prunekit_plugins.compensation.held_out import HeldOut
from prunekit_plugins.compensation.layer_fit import LayerFit
from prunekit_plugins.compensation.pairing import find_pairs
from prunekit_plugins.compensation.rows.common import gather_common
from prunekit_plugins.compensation.side_by_side import SideBySide
from prunekit_plugins.compensation.takeovers import Takeover

ALONE = "no example is left to hold out, and one alone says nothing about others"
NONE_IN_BOTH = "no token is sent to it both before and after the cut, so there is nothing to fit it to"
UNFIT = "A compensator gave values that don't fit."


@attrs.frozen
class LayerRepair:
    """What became of one consumer.

    Attributes:
        consumer: Name of its site.
        method: Which compensator it was.
        before: Its mean squared error on the calibration data, relative to the variance of the targets, as cut.
        after: The same after compensation.
        detail: What was chosen.
    """

    consumer: str
    method: str
    before: float
    after: float
    detail: str = ""

    def __str__(self) -> str:
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.consumer}: {self.method}, error {self.before:.3g} -> {self.after:.3g}{detail}"


class Repair:
    """A pruned model beside the original on calibration data.

    Args:
        original: The original, watched.
        module: A copy of the pruned model, which is changed.
        plan: The plan from one to the other.
        batches: The calibration batches.
        registry: Where rules and replacements are found.
        stages: In how many stages consumers are compensated; each is fitted to what the stages before it left. None
            for one stage per consumer, but at most `STAGES`.
        scratch: The values of a copy on the meta device; None where it has its own.
        takeovers: What takes over the branches that the plan removes.
        left: Branches that nothing takes over, with the reason.
        analyse: Returns what is known about the program of the original.

    Attributes:
        module: The copy.
        plan: The plan.
        original: The original, watched.
        repairs: What was done so far.
        left: Consumers (and others) that were left alone, with the reason.
        undone: Compensators whose work was taken back, with the reason.
        unsolved: Consumers for which a compensator gave values that are not finite, with its name.
        notes: What speaks against estimates: samples that are not finite, or too few.
        changed: Whether the present compensator has changed anything.
        unproven: Whether it wrote anything by itself, not through `settle`, which compares.
        trouble: What is wrong with what it wrote; empty if nothing is known to be.
    """

    STAGES = 12

    def __init__(
        self,
        original: Watched,
        module: nn.Module,
        plan: Plan,
        batches: Batches,
        registry: Registry,
        *,
        stages: int | None,
        scratch: Scratch | None = None,
        takeovers: Sequence[Takeover] = (),
        left: Mapping[str, str] | None = None,
        analyse: Callable[[], Analysis],
    ) -> None:
        self.module, self.repairs = module, list[LayerRepair]()
        self.left: dict[str, str] = dict(left or {})
        self.undone: dict[str, str] = {}
        self.unsolved: dict[str, str] = {}
        self.notes: list[str] = []
        self.written: dict[str, torch.Tensor] = {}
        self.original, self.plan, self._analyse = original, plan, analyse
        self._stages, self._scratch = stages, scratch
        self._method, self._blame = "", Blame("compensator", None)
        self._done: list[LayerRepair] = []
        self._before: dict[str, torch.Tensor] = {}  # of what it changed, unless a scratch keeps that
        self.changed, self.unproven, self.trouble = False, False, ""
        self._both = SideBySide(original, module, batches, registry, scratch)
        self._pairs = find_pairs(self._both, plan, {takeover.parameter: takeover for takeover in takeovers})
        self.left |= self._pairs.left

    @functools.cached_property
    def analysis(self) -> Analysis:
        """What is known about the program of the original."""
        return self._analyse()

    def use(self, method: str, blame: Blame) -> None:
        """Names the compensator that works from now on, and whose it is."""
        self._method, self._blame = method, blame
        self._done, self._before = list(self.repairs), {}
        self.changed, self.unproven, self.trouble = False, False, ""
        if self._scratch is not None:
            self._scratch.mark()

    def undo(self, why: str) -> None:
        """Takes back everything that the present compensator wrote.

        Args:
            why: The reason, for the report.
        """
        for name in self._scratch.restore() if self._scratch is not None else ():
            self._both.changed(name, self.values(name))
        for name, values in self._before.items():
            self._put(name, values)
        self.repairs[:], self._before, self.changed = self._done, {}, False
        self.undone[self._method] = why

    # -- running

    def values(self, name: str) -> torch.Tensor:
        """Returns the values of a parameter or buffer of the copy by its canonical name, detached."""
        return named_tensors(self.module)[name].detach() if self._scratch is None else self._scratch.read(name)

    def batches(self, *, held: bool | None = None) -> Iterator[Batch]:
        """Yields the calibration batches; see `SideBySide.batches`."""
        return self._both.batches(held=held)

    @property
    def held_out(self) -> HeldOut:
        """Which examples are held out."""
        return self._both.held_out

    def output_error(self, *, held: bool | None = None) -> float:
        """Returns the relative error of the copy's outputs; see `SideBySide.output_error`."""
        return self._both.output_error(held=held)

    # -- problems

    def layers(self, *, lost: bool = False) -> Iterator[LayerFit]:
        """Yields the consumers that lost features or take over branches, in the order in which they run.

        What `settle` did to those of the stages before shows in what the first consumers of a stage read. The later
        ones of a stage are given what they read in the original, less the removed features, which is what they read
        once those before them are settled, as far as that can be known.

        Consumers that see other rows than before the cut, such as experts, come last, those of one mixture at a time.
        They are fitted to the rows that they see in both models, and stay as they were where that doesn't make the
        outputs better on examples that are held out.

        Args:
            lost: Whether the moments of removed features are gathered as well.
        """
        steady = self._pairs.steady
        for chosen in self._staged(list(dict.fromkeys(pair.after.level for pair in steady))):
            part = [pair for pair in steady if pair.after.level in chosen]
            later = [pair for pair in steady if pair.after.level > max(chosen)]
            for portion in portions(part, self._both.moments_room):
                runs, behind = self._both.forwards(), [pair for pair in part if pair not in portion]
                gathered = gather(
                    portion,
                    [*behind, *later],
                    *runs,
                    self.batches(),
                    held_out=self.held_out,
                    lost=lost,
                    level=min(chosen),
                )
                for pair in portion:
                    problem = self._problem(pair, gathered.pop(pair.after.site.name), lost=lost)
                    if problem is not None:
                        yield problem
        for group in self._pairs.mixtures(self.STAGES if self._stages is None else self._stages):
            yield from self._picked(group, lost=lost)

    def _picked(self, part: Sequence[Pair], *, lost: bool) -> Iterator[LayerFit]:
        """Yields consumers that see other rows; takes back what was done to them where it does no good."""
        gathered = gather_common(part, self.original, self._both.pruned, self.batches(), self.held_out, lost=lost)
        present = {name: self.values(name).clone() for pair in part for name in pair.after.tensors}
        before, done = self.output_error(held=True), len(self.repairs)
        for pair in part:
            own = gathered.pop(pair.after.site.name)
            if not own.now.fit.count + own.now.held.count:
                self.left[pair.after.site.name] = NONE_IN_BOTH
                continue
            problem = self._problem(pair, own, lost=lost)
            if problem is not None:
                yield problem
        after = self.output_error(held=True) if len(self.repairs) > done else before
        if len(self.repairs) > done and not after < before:
            for name, values in present.items():
                self._write(name, values)
            worse = f"{self._method} would make the outputs worse (held-out error {before:.3g} -> {after:.3g})"
            self.left |= {one.consumer: worse for one in self.repairs[done:]}
            del self.repairs[done:]

    def _staged(self, levels: Sequence[int]) -> Iterator[Sequence[int]]:
        """Shares levels out among stages; consumers that take over branches are first in theirs."""
        count, taking = len(levels), {pair.after.level for pair in self._pairs.steady if pair.takeover is not None}
        stages = min(count, self.STAGES if self._stages is None else self._stages)
        starts = {number * count // stages for number in range(stages)}
        starts |= {place for place, level in enumerate(levels) if level in taking}
        for start, stop in itertools.pairwise((*sorted(starts), count)):
            yield levels[start:stop]

    def _problem(self, pair: Pair, gathered: Gathered, *, lost: bool) -> LayerFit | None:
        site, correspondence = pair.after.site, pair.correspondence
        fit, held = gathered.now.fit.moments(), gathered.now.held.moments()
        if fit is None:
            fit, held = held, None
        if fit is None:
            self.left[site.name] = "no sample that it read was finite"
            return None
        independent = sum(part.independent for part in (fit, held) if part is not None)
        self._doubt(site.name, gathered, fit.mean.shape[1], independent)
        weight, offset = self._own(pair, fit.mean.device)
        slope = None if gathered.slope is None else gathered.slope.to(weight).reshape(weight.shape[:2])
        if slope is not None:
            weight, offset = weight * slope[:, :, None], offset * slope
        old = self.original.values(pair.before.site.parameter)
        lost_weight = correspondence.lost_part(pair.before.site.matrix(old).to(weight.device).double())
        lost_weight = lost_weight * correspondence.scales.to(lost_weight.device).reshape(*weight.shape[:2], 1)
        seen = gathered.lost.moments() if lost else None
        empty = lost_weight.new_zeros(lost_weight.shape[0], lost_weight.shape[2])
        return LayerFit(
            site.name,
            weight,
            offset,
            bool(pair.after.bias or pair.after.mean),
            fit,
            held,
            lost_weight,
            empty if seen is None else correspondence.lost_features(seen.mean),
            empty if seen is None else correspondence.lost_features(seen.variance),
            gathered.earlier.fit.moments(),
            gathered.earlier.held.moments(),
            slope,
        )

    def _own(self, pair: Pair, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weight ``[groups, outputs, features]`` and the offset that a consumer has now, in float64."""
        weight = pair.after.site.matrix(self.values(pair.after.site.parameter)).to(device).double()
        offset = weight.new_zeros(weight.shape[:2])
        if pair.after.bias:
            offset = self._run(pair.after.bias)[0].to(weight).reshape(weight.shape[:2])
        return weight, offset

    def _doubt(self, name: str, gathered: Gathered, width: int, independent: float) -> None:
        found = doubts(name, (gathered.now.fit, gathered.now.held), width, independent)
        self.notes.extend(line for line in found if line not in self.notes)

    # -- writing

    def settle(self, problem: LayerFit, weight: torch.Tensor, offset: torch.Tensor, detail: str = "") -> bool:
        """Gives a consumer another weight and offset, unless that would make its error on the calibration data worse.

        Args:
            problem: The consumer.
            weight: Tensor ``[groups, outputs, features]``.
            offset: Tensor ``[groups, outputs]``; that of the problem where it isn't movable.
            detail: What was chosen, for the report.

        Returns:
            Whether it was done; if not, the reason is noted.

        Raises:
            PluginError: The weight or the offset has another shape, or is no tensor.
        """
        self._check_shape(weight, problem.weight.shape, f"the weight of {problem.name}")
        self._check_shape(offset, problem.offset.shape, f"the offset of {problem.name}")
        if problem.held is None:
            self.left[problem.name] = f"{self._method}: {ALONE}"
            return False
        pair = next(pair for pair in self._pairs.all if pair.after.site.name == problem.name)
        site = pair.after.site
        whole = self.values(site.parameter)
        dtype = whole.dtype
        present = self._own(pair, weight.device)
        own, moved = (values.to(dtype).double() for values in problem.unscaled((weight, offset), present))
        if not bool(torch.isfinite(own).all()) or not bool(torch.isfinite(moved).all()):
            self.left[problem.name] = f"{self._method}: the solution is not finite"
            self.unsolved[problem.name] = self._method
            return False
        before, after = _errors(problem, problem.weight, problem.offset), _errors(problem, *problem.scaled(own, moved))
        if any(not b <= a for a, b in zip(before, after, strict=True)):
            pairs = zip(("fitted", "held-out"), before, after, strict=False)
            worse = next(f"{name} error {a:.3g} -> {b:.3g}" for name, a, b in pairs if not b <= a)
            self.left[problem.name] = f"{self._method} would make it worse ({worse})"
            return False
        self._write(site.parameter, site.placed(own, whole))
        if not torch.equal(moved, present[1]):
            self._move(pair, moved - present[1])
        shares = (problem.fit.count, problem.held.count if problem.held else 0)
        self.record(problem.name, _mean(before, shares), _mean(after, shares), detail)
        return True

    def record(self, name: str, before: float, after: float, detail: str = "") -> None:
        """Notes what was done for the report.

        Args:
            name: What it was done to.
            before, after: The relative error before and after.
            detail: What was chosen.
        """
        self.repairs.append(LayerRepair(name, self._method, before, after, detail))

    def _move(self, pair: Pair, change: torch.Tensor) -> None:
        if pair.after.bias:
            run, values = self._run(pair.after.bias)
            run += change.flatten().to(run)
            self._write(pair.after.bias.parameter, values)
        else:
            values = self.values(pair.after.mean)
            self._write(pair.after.mean, values - change.flatten().to(values))

    def _run(self, bias: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a copy of the run of a parameter that a bias is, as a view, and all of the copy."""
        values = self.values(bias.parameter).clone()
        return values[bias.rows], values

    def write(self, name: str, values: torch.Tensor) -> None:
        """Gives a parameter or buffer of the copy other values; the model gets them at the end.

        When the compensator is done, all that it wrote is undone, and the report says so, if it wrote values that are
        not finite where those before were, or if the outputs on the calibration data are worse than right after the
        cut.

        Args:
            name: Its canonical name.
            values: Tensor of its shape.

        Raises:
            PluginError: The copy has no such tensor, it has another shape, or the values are no tensor.
        """
        known = named_tensors(self.module)
        if name not in known:
            raise self._blame.error(UNFIT, f"there is no tensor {name!r}", hint=nearest(name, known))
        self._check_shape(values, known[name].shape, name)
        self.unproven = True
        present = self.values(name)
        if present.is_floating_point() and not bool((values.isfinite() | ~present.isfinite().to(values.device)).all()):
            self.trouble = self.trouble or f"it gives {name} values that are not finite"
            return
        self._write(name, values)

    def _check_shape(self, values: object, shape: torch.Size, at: str) -> None:
        """Raises `PluginError` unless values are a tensor of a shape."""
        if isinstance(values, torch.Tensor) and values.shape == shape:
            return
        got = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        hint = f"give a tensor of the shape {tuple(shape)}"
        raise self._blame.error(UNFIT, f"got {got}, it has the shape {tuple(shape)}", at=at, hint=hint)

    def _write(self, name: str, values: torch.Tensor) -> None:
        self.changed = True
        if self._scratch is not None:
            self._scratch.put(name, values)
            self._both.changed(name, self.values(name))
        else:
            self._before.setdefault(name, self.values(name))
            self._put(name, values)

    def _put(self, name: str, values: torch.Tensor) -> None:
        tensor = named_tensors(self.module)[name]
        replace_values(tensor, values)
        self.written[name] = tensor
        self._both.changed(name, tensor.data if isinstance(tensor, nn.Parameter) else tensor.data.clone())


def _errors(problem: LayerFit, weight: torch.Tensor, offset: torch.Tensor) -> list[float]:
    parts: list[Moments] = [problem.fit, *([problem.held] if problem.held else [])]
    return [problem.error(weight, offset, part) for part in parts]


def _mean(errors: Sequence[float], shares: Sequence[int]) -> float:
    weighted = sum(error * share for error, share in zip(errors, shares, strict=False))
    return weighted / sum(shares[: len(errors)])


Compensator = Callable[[Repair], None]
"""Repairs a pruned model: solves its problems, or writes what it likes to the copy."""

"""How much the outputs of a model move with those of each consumer, from random projections of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.program.linear_forms import Site
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.moments import Gatherer, Moments, is_finite
from prunekit_plugins.calibration.observation import Run, Watched
from prunekit_plugins.calibration.projections import FEWEST, Projections, usual_count
from prunekit_plugins.calibration.symmetric import Symmetric

ENOUGH = 16
"""Projections after which a small batch has one, and every other one none: it takes as long as the rest of a pass."""
BLOCK = 1 << 20
"""Elements of outputs whose squares, or products, are added up at a time."""
WIDEST = 4096
"""Outputs up to which a consumer has a whole matrix: one for a vocabulary of 50,000 would take ten gigabytes."""


@attrs.frozen
class Call:
    """One time that a consumer ran.

    Attributes:
        module: Dotted path of the innermost module that was running.
        samples: Number of samples that it read.
    """

    module: str
    samples: int


@attrs.define(eq=False)
class Read:
    """A consumer that was seen.

    Attributes:
        site: What it multiplies by.
        bias: The parameter, or the run of one, that it adds; None where there is none.
        gatherer: The moments of what it read so far.
        samples: Number of finite samples of what it put out.
        energy: Tensor ``[groups, outputs]``, float64: the sum of their squares; None before the first one.
        calls: Each time that it ran in the present batch.
    """

    site: Site
    bias: Run | None
    gatherer: Gatherer
    samples: int = 0
    energy: torch.Tensor | None = None
    calls: list[Call] = attrs.field(factory=list)

    def weigh(self, outputs: torch.Tensor) -> None:
        """Adds samples of what it put out, ``[groups, samples, outputs]``, some at a time: a vocabulary is large."""
        for part in outputs.split(max(1, BLOCK // max(1, outputs.shape[0] * outputs.shape[2])), 1):
            kept = part.to(torch.promote_types(part.dtype, torch.float32))
            squares = kept.square().sum(1)
            if not is_finite(squares):
                kept = kept[:, kept.isfinite().all(2).all(0)]
                squares = kept.square().sum(1, dtype=torch.float64)
            squares = squares.double()
            self.samples += kept.shape[1]
            self.energy = squares if self.energy is None else self.energy + squares


@attrs.frozen(eq=False)
class _Square:
    """The symmetric matrix ``left @ right`` that one projection adds for a consumer.

    Attributes:
        left: Tensor ``[groups, outputs, rank]``.
        right: Tensor ``[groups, rank, outputs]``.
        alone: Tensor ``[groups, features]``: by how much the projection moves where a feature alone is gone; None of a
            consumer with more than `WIDEST` outputs, for which that takes as long as the rest of a pass.
    """

    left: torch.Tensor
    right: torch.Tensor
    alone: torch.Tensor | None

    @property
    def diagonal(self) -> torch.Tensor:
        """Tensor ``[groups, outputs]``; finite only where all of the matrix is."""
        step = max(1, BLOCK // max(1, self.left.shape[0] * self.left.shape[2]))
        parts = zip(self.left.split(step, 1), self.right.split(step, 2), strict=True)
        return torch.cat([(one * other.transpose(1, 2)).sum(2) for one, other in parts], 1)


Keep = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with what a layer read and the gradient by what it put out."""


class _Tap(torch.autograd.Function):
    """Hands on what a layer puts out, and shows the gradient by it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, read: torch.Tensor, anchor: torch.Tensor, keep: Keep) -> torch.Tensor:
        ctx.save_for_backward(read)
        ctx.keep = keep
        return output.clone()  # it may be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (read,) = ctx.saved_tensors
        ctx.keep(read, gradient)
        return gradient, None, torch.zeros((), device="cpu"), None


class _Taps:
    """Linear layers whose gradients are taken by what they put out: the weights' own aren't needed then.

    Args:
        layers: Name of a consumer to the ``nn.Linear`` that it is.

    Attributes:
        layers: The same.
        anchor: A scalar on which all that they put out depends: ask for the gradient by it.
        found: Name of a consumer to what it read, ``[samples, features]``, and the gradient, ``[samples, outputs]``.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.anchor = torch.zeros((), device="cpu", requires_grad=True)
        self.found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Has the layers tapped while it is entered."""
        handles = [
            layer.register_forward_hook(self._hook(name), with_kwargs=True) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def keep(read: torch.Tensor, gradient: torch.Tensor) -> None:
            read = read.detach().to(gradient.dtype)  # under autocast it reads another dtype
            self.found[name] = read.flatten(0, -2).float(), gradient.detach().flatten(0, -2).float()

        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor:
            tapped: torch.Tensor = _Tap.apply(output, args[0] if args else kwargs["input"], self.anchor, keep)
            return tapped

        return hook


class Curvatures:
    """Estimates the matrix ``G`` with which an error of a consumer's outputs counts in those of the model.

    Let ``v`` be a random vector, see `Projections`, and ``D`` the gradient of ``<v, outputs>`` by the consumer's
    weight. Then ``E[tr(E^T D)^2]`` is the squared change of the outputs, in the metric of `Projections`, for a small
    change ``E`` of the weight. K-FAC (Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored
    Approximate Curvature*, ICML 2015) takes that for ``tr(E^T G E C)`` with the covariance ``C`` of what the consumer
    reads, from which ``G = E[D D^T] / tr(C)`` follows.

    For that, what a consumer reads and the gradient have nothing to do with each other. Some layers of language models
    read values hundreds of times larger at a position that is attended to for no content of its own (Sun et al.,
    *Massive Activations in Large Language Models*, 2024), where gradients are small: the trace of ``C`` is that
    position's, and ``G`` too small for all others. So ``G`` is multiplied by how many times more than it says the
    projections moved if a feature alone were gone, ``(D^T W)_cc^2`` over ``(W^T G W)_cc C_cc``: the median over
    features, at least 1; consumers of more than `WIDEST` outputs are left as they are.

    Where the consumer adds a bias, whose gradient is ``d``, ``D - d m^T`` stands for ``D``, with the mean ``m`` of what
    it reads: a shift of its outputs doesn't count, since the bias makes up for it.

    Args:
        watched: The model; its ``.grad`` stays as it is.
        widest: Outputs (in a group) up to which a consumer has the whole matrix; a wider one has its diagonal.

    Attributes:
        trouble: Why there are none; empty while there are.
        dropped: Number of batches whose gradients were not finite: they are left out.
    """

    def __init__(self, watched: Watched, widest: int = WIDEST) -> None:
        self._watched, self._widest = watched, widest
        self._tied = _tied(watched.shadow.modules.values())
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._sums: dict[str, Symmetric] = {}
        self._diagonals: dict[str, torch.Tensor] = {}  # of wide consumers
        self._alone: dict[str, torch.Tensor] = {}  # squared changes without one feature
        self._weight = 0
        self._seen = self._done = 0  # batches, and projections of them
        self.dropped = 0
        self.trouble = ""

    def add(self, batch: Batch, reads: Mapping[str, Read]) -> None:
        """Adds a batch, unless there was trouble.

        Args:
            batch: The batch.
            reads: The consumers by the names of their sites; their moments have the batch in them already.
        """
        self._seen += 1
        if not self.trouble and self._times(batch):
            self._try(batch, reads)
        for read in reads.values():
            read.calls.clear()

    def _try(self, batch: Batch, reads: Mapping[str, Read]) -> None:
        parameters = {n: t for n, t in self._watched.shadow.tensors().items() if isinstance(t, nn.Parameter)}
        taps = _Taps({name: layer for name, read in reads.items() if (layer := self._layer(read)) is not None})
        others = [read for name, read in reads.items() if name not in taps.layers]
        wanted = {read.site.parameter for read in others} | {read.bias.parameter for read in others if read.bias}
        chosen = {name: parameters[name] for name in sorted(wanted)}
        try:
            with self._watched.differentiable(chosen.values()) as module, taps.placed():
                self._project(module, batch, reads, chosen, taps)
        except RuntimeError as error:
            self.trouble = f"{type(error).__name__}: {str(error)[:200]}"

    def _times(self, batch: Batch) -> int:
        """Returns how many projections a batch has."""
        return usual_count(batch, FEWEST if self._done < ENOUGH else self._seen % 2)

    def _layer(self, read: Read) -> nn.Module | None:
        """Returns the linear layer that a consumer is, if the gradient by what it puts out is to be taken.

        It is where that is the cheaper way, see `_by_outputs`, and where something else uses the weight, too (an
        embedding that is tied to it), whose part would be in the gradient by the weight.
        """
        if len(read.calls) != 1 or read.site.groups != 1 or read.site.inputs_first:
            return None
        (call,) = read.calls
        layer = self._watched.shadow.modules.get(call.module)
        plain = layer is not None and getattr(layer.forward, "__wrapped__", None) is nn.Linear.forward
        if not plain or layer is None or layer._forward_hooks:
            return None
        if self._watched.shadow.names.get(id(layer.weight)) != read.site.parameter:
            return None
        if read.site.rows != (0, read.site.shape[0]):
            return None
        return layer if id(layer.weight) in self._tied or self._by_outputs(read.site, call.samples) else None

    def _by_outputs(self, site: Site, samples: int) -> bool:
        """Tells whether ``D D^T`` of a linear layer is sooner made of the gradient ``E`` by what it puts out.

        ``D`` is ``E^T X`` with what was read, ``X``: with fewer samples than features ``D D^T`` is sooner made as
        ``E^T (X X^T) E``.
        """
        outputs, features = site.shape
        beside = 0 if outputs > self._widest else outputs**2  # what a matrix costs for each of the two
        if outputs > WIDEST:
            return samples**2 * (features + outputs) + samples * beside < (samples * outputs + beside) * features
        # either way there is a product of samples, features and outputs: D, or what features do alone
        return samples**2 * (features + outputs) + samples * beside < (outputs + beside) * features

    def _project(
        self,
        module: nn.Module,
        batch: Batch,
        reads: Mapping[str, Read],
        chosen: Mapping[str, torch.Tensor],
        taps: _Taps,
    ) -> None:
        example = batch.example
        with torch.enable_grad():
            projections = Projections.of(example.runner(module, example.args, example.kwargs))
            if not projections.tensors:
                self.trouble = "no output has a gradient"
                return
            times = self._times(batch)
            kept = 0
            for turn in range(times):
                taps.found.clear()
                _, *found = torch.autograd.grad(
                    projections.tensors,
                    [taps.anchor, *chosen.values()],
                    projections.draw(batch, self._generator),
                    retain_graph=turn < times - 1,
                    allow_unused=True,
                )
                kept += self._add(dict(self._squares(reads, dict(zip(chosen, found, strict=True)), taps)))
        self._weight += kept * batch.size
        self._done += times
        self.dropped += kept < times

    def check(self, reads: Mapping[str, Read]) -> None:
        """Notes trouble if a consumer had no gradient in any batch; call it after the last one."""
        known = self._sums.keys() | self._diagonals.keys()
        without = [name for name in reads if name not in known]
        if without and not self.trouble:
            self.trouble = f"no gradient reaches {without[0]}" if known else "the gradients are not finite"

    def finish(self, read: Read, moments: Moments) -> torch.Tensor | Symmetric:
        """Returns the matrix of a consumer; call it once.

        Args:
            read: The consumer.
            moments: Of what it read.

        Returns:
            ``[groups, outputs, outputs]``, float32: ``G``, for the sum of squared changes of the outputs of one
            example; a tensor ``[groups, outputs]``, its diagonal, of a wide consumer.
        """
        spread = moments.variance if read.bias else moments.variance + moments.mean.square()
        whole = spread.sum(1) * self._weight
        scale = torch.where(whole > 0, whole, 1).reciprocal() * (whole > 0)
        found = self._sums.pop(read.site.name, None) or self._diagonals.pop(read.site.name)
        alone = self._alone.pop(read.site.name, None)
        if alone is not None:
            weight = self._matrix(read)
            bent = found.times(weight) if isinstance(found, Symmetric) else found[:, :, None] * weight
            expected = (bent * weight).sum(1).double() * spread * scale[:, None] * self._weight
            scale = scale * _times_more(alone, expected)
        if isinstance(found, Symmetric):
            found.multiply(scale)
            return found
        return found.mul_(scale[:, None])

    def _squares(
        self, reads: Mapping[str, Read], gradients: Mapping[str, torch.Tensor | None], taps: _Taps
    ) -> Iterator[tuple[str, _Square]]:
        """Yields ``D D^T`` by consumer, but for those that did not run or that nothing that counts depends on."""
        for name, read in reads.items():
            center = read.gatherer.center() if read.bias else None
            if name in taps.layers:
                if name in taps.found:
                    features, slope = taps.found[name]
                    features = features if center is None else features - center.float()
                    yield name, self._square(read, features, slope)
                continue
            whole = gradients[read.site.parameter]
            if whole is None:
                continue
            gradient = read.site.matrix(whole.detach()).float()
            moved = None if read.bias is None else gradients[read.bias.parameter]
            if read.bias is not None and moved is not None and center is not None:
                moved = moved[read.bias.rows].reshape(gradient.shape[:2])
                gradient = gradient - moved[:, :, None] * center.float()[:, None]
            yield name, _Square(gradient, gradient.transpose(1, 2), self._alone_of(read, gradient))

    def _matrix(self, read: Read) -> torch.Tensor:
        """Returns what a consumer multiplies by, ``[groups, outputs, features]``, float32."""
        return read.site.matrix(self._watched.values(read.site.parameter)).float()

    def _alone_of(self, read: Read, gradient: torch.Tensor) -> torch.Tensor | None:
        """What features do alone, ``[groups, features]``, by the gradient ``[groups, outputs, features]``."""
        return None if gradient.shape[1] > WIDEST else (gradient * self._matrix(read)).sum(1)

    def _square(self, read: Read, features: torch.Tensor, slope: torch.Tensor) -> _Square:
        """Returns ``D D^T`` of a linear layer.

        Args:
            read: The layer.
            features: Tensor ``[samples, features]``: what it read, less the mean where it adds a bias.
            slope: Tensor ``[samples, outputs]``: the gradient by what it put out.
        """
        if self._by_outputs(read.site, len(slope)):
            alone = None if slope.shape[1] > WIDEST else ((slope @ self._matrix(read)[0]) * features).sum(0)[None]
            return _Square(slope.T[None], (features @ features.T @ slope)[None], alone)
        gradient = (slope.T @ features)[None]
        return _Square(gradient, gradient.transpose(1, 2), self._alone_of(read, gradient))

    def _add(self, squares: Mapping[str, _Square]) -> bool:
        """Adds one projection, of all consumers or of none; returns whether all that it adds is finite."""
        diagonals = {name: square.diagonal for name, square in squares.items()}
        if not all(bool(diagonal.isfinite().all()) for diagonal in diagonals.values()):
            return False
        for name, square in squares.items():
            diagonal = diagonals[name]
            groups, width = diagonal.shape
            if square.alone is not None:
                moved = square.alone.double().square()
                self._alone[name] = self._alone[name] + moved if name in self._alone else moved
            if width > self._widest:
                known = self._diagonals.get(name)
                self._diagonals[name] = diagonal if known is None else known.add_(diagonal)
                continue
            if name not in self._sums:
                self._sums[name] = Symmetric.zeros(groups, width, torch.float32, diagonal.device)
            self._sums[name].add_product(square.left, square.right)
        return True


def _times_more(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Returns how many times more than expected the outputs move without one feature: the median, but at least 1.

    Args:
        found: Tensor ``[groups, features]``: squared changes, added up.
        expected: The same, as the matrix says.

    Returns:
        Tensor ``[groups]``.
    """
    ratios = torch.where(expected > 0, found / expected, torch.nan)
    return ratios.nanmedian(1).values.nan_to_num(nan=1.0).clamp(min=1.0)


def _tied(modules: Iterable[nn.Module]) -> set[int]:
    """Finds the parameters that several modules have, by identity."""
    held = Counter(id(one) for module in dict.fromkeys(modules) for one in module.parameters(recurse=False))
    return {parameter for parameter, count in held.items() if count > 1}

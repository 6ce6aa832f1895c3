"""How much the outputs of a model move with those of each consumer, from random projections of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs
import torch
from torch import nn

from prunekit_core.program.linear_forms import Site
from prunekit_core.program.outputs import output_tensors
from prunekit_plugins.calibration.batches import Batch
from prunekit_plugins.calibration.moments import Gatherer, Moments
from prunekit_plugins.calibration.observation import Run, Watched

EXAMPLES = 16
"""Examples of a batch for which there is one random projection of the outputs."""
FEWEST, MOST = 2, 8
"""Projections of one batch."""
BLOCK = 1 << 22
"""Elements of outputs whose squares are added up at a time."""
WIDEST = 4096
"""Outputs up to which a consumer has a whole matrix: one for a vocabulary of 50,000 would take ten gigabytes."""


@attrs.define(eq=False)
class Read:
    """A consumer that was seen.

    Attributes:
        site: What it multiplies by.
        bias: The parameter, or the run of one, that it adds; None where there is none.
        gatherer: The moments of what it read so far.
        samples: Number of finite samples of what it put out.
        energy: Tensor ``[groups, outputs]``, float64: the sum of their squares; None before the first one.
    """

    site: Site
    bias: Run | None
    gatherer: Gatherer
    samples: int = 0
    energy: torch.Tensor | None = None

    def weigh(self, outputs: torch.Tensor) -> None:
        """Adds samples of what it put out, ``[groups, samples, outputs]``, some at a time: a vocabulary is large."""
        for part in outputs.split(max(1, BLOCK // max(1, outputs.shape[0] * outputs.shape[2])), 1):
            finite = part.isfinite().all(2).all(0)
            squares = part[:, finite].double().square().sum(1)
            self.samples += int(finite.sum())
            self.energy = squares if self.energy is None else self.energy + squares


class Curvatures:
    """Estimates the matrix ``G`` with which an error of a consumer's outputs counts in those of the model.

    Let ``v`` be a random vector of ones and minus ones, and ``D`` the gradient of ``<v, outputs>`` by the consumer's
    weight. Then ``E[tr(E^T D)^2]`` is the squared change of the outputs for a small change ``E`` of the weight. K-FAC
    (Martens and Grosse, *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*, ICML 2015) takes
    that for ``tr(E^T G E C)`` with the covariance ``C`` of what the consumer reads, from which ``G = E[D D^T] / tr(C)``
    follows.

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
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._sums: dict[str, torch.Tensor] = {}
        self._weight = 0
        self.dropped = 0
        self.trouble = ""

    def add(self, batch: Batch, reads: Mapping[str, Read]) -> None:
        """Adds a batch, unless there was trouble.

        Args:
            batch: The batch.
            reads: The consumers by the names of their sites; their moments have the batch in them already.
        """
        if self.trouble:
            return
        parameters = {n: t for n, t in self._watched.shadow.tensors().items() if isinstance(t, nn.Parameter)}
        wanted = {read.site.parameter for read in reads.values()}
        wanted |= {read.bias.parameter for read in reads.values() if read.bias}
        chosen = {name: parameters[name] for name in sorted(wanted)}
        try:
            with self._watched.differentiable(chosen.values()) as module:
                self._project(module, batch, reads, chosen)
        except RuntimeError as error:
            self.trouble = f"{type(error).__name__}: {str(error)[:200]}"

    def _project(
        self, module: nn.Module, batch: Batch, reads: Mapping[str, Read], chosen: Mapping[str, torch.Tensor]
    ) -> None:
        example = batch.example
        with torch.enable_grad():
            outputs = output_tensors(example.runner(module, example.args, example.kwargs))
            outputs = [tensor for tensor in outputs if tensor.requires_grad]
            if not outputs:
                self.trouble = "no output has a gradient"
                return
            times = min(MOST, max(FEWEST, batch.size // EXAMPLES))
            squares: dict[str, torch.Tensor] = {}
            for turn in range(times):
                found = torch.autograd.grad(
                    outputs,
                    list(chosen.values()),
                    [self._signs(tensor, batch) for tensor in outputs],
                    retain_graph=turn < times - 1,
                    allow_unused=True,
                )
                _add(squares, self._squares(reads, dict(zip(chosen, found, strict=True))))
        if all(bool(square.isfinite().all()) for square in squares.values()):
            _add(self._sums, squares.items())
            self._weight += times * batch.size
        else:
            self.dropped += 1

    def _signs(self, tensor: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Random signs of the shape of an output, zero where a mask leaves positions out."""
        signs = torch.randint(0, 2, tensor.shape, generator=self._generator, dtype=torch.int8, device="cpu") * 2 - 1
        signs = signs.to(tensor.device, tensor.dtype)
        counted = batch.counted(tuple(tensor.shape[:-1])) if tensor.dim() > 1 else None
        return signs if counted is None else signs * counted[..., None]

    def check(self, reads: Mapping[str, Read]) -> None:
        """Notes trouble if a consumer had no gradient in any batch; call it after the last one."""
        without = [name for name in reads if name not in self._sums]
        if without and not self.trouble:
            self.trouble = f"no gradient reaches {without[0]}" if self._sums else "the gradients are not finite"

    def finish(self, read: Read, moments: Moments) -> torch.Tensor:
        """Returns the matrix of a consumer; call it once.

        Args:
            read: The consumer.
            moments: Of what it read.

        Returns:
            Tensor ``[groups, outputs, outputs]``, float32: ``G``, for the sum of squared changes of the outputs of one
            example; ``[groups, outputs]``, its diagonal, of a wide consumer.
        """
        spread = moments.variance if read.bias else moments.variance + moments.mean.square()
        weight = spread.sum(1) * self._weight
        scale = torch.where(weight > 0, weight, 1).reciprocal() * (weight > 0)
        total = self._sums.pop(read.site.name)
        return total * scale.reshape(-1, *[1] * (total.dim() - 1)).float()

    def _squares(
        self, reads: Mapping[str, Read], gradients: Mapping[str, torch.Tensor | None]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields ``D D^T`` by consumer, but for those that did not run or that nothing that counts depends on."""
        for name, read in reads.items():
            whole = gradients[read.site.parameter]
            if whole is None:
                continue
            gradient = read.site.matrix(whole.detach()).float()
            bias, center = read.bias, read.gatherer.center()
            slope = None if bias is None else gradients[bias.parameter]
            if bias is not None and slope is not None and center is not None:
                gradient = gradient - slope[bias.rows].reshape(gradient.shape[:2])[:, :, None] * center.float()[:, None]
            wide = gradient.shape[1] > self._widest
            yield name, gradient.square().sum(2) if wide else gradient @ gradient.transpose(1, 2)


def _add(sums: dict[str, torch.Tensor], values: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, value in values:
        sums[name] = sums[name].add_(value) if name in sums else value

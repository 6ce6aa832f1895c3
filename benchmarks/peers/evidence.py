"""What calibration data say of a decoder, each thing gathered once and when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from .decoder import Sizes, layers_of, readers
from .meter import Meter

Site = tuple[str, int]
"""``"groups"`` or ``"neurons"``, and the number of the layer."""


@attrs.define(eq=False)
class Moments:
    """Sums over tokens of what one projection reads.

    Attributes:
        count: Tokens.
        total: ``[features]``.
        products: ``[features, features]``.
    """

    count: int
    total: Tensor
    products: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def second(self) -> Tensor:
        """Mean products ``[features, features]``."""
        return self.products / self.count

    @property
    def covariance(self) -> Tensor:
        return self.second - torch.outer(self.mean, self.mean)

    def add(self, x: Tensor) -> None:
        """Adds what was read, ``[..., features]``."""
        rows = x.detach().flatten(0, -2)
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products.addmm_(rows.T, rows)


@attrs.frozen
class Influence:
    """How layers treat the stream.

    Attributes:
        closeness: Mean cosine of each layer's input and output, ``[layers]``.
        power: Mean squared norm of the stream after each layer, ``[layers]``.
    """

    closeness: Tensor
    power: Tensor


class gathered:  # noqa: N801 - a decorator
    """A property that is computed when first asked for; what that took is kept."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, evidence: Evidence, _: type) -> Any:
        if self.name not in evidence.values:
            with Meter() as meter:
                evidence.values[self.name] = self.compute(evidence)
            evidence.meters[self.name] = meter
        evidence.asked.add(self.name)
        return evidence.values[self.name]


class Evidence:
    """Statistics of a decoder on calibration windows, ids ``[windows, length]``.

    Attributes:
        values: What was gathered, by name.
        meters: What gathering took, by name.
        asked: What was used; to be emptied by whoever wants to know what one method uses.
    """

    def __init__(self, model: Any, windows: Tensor, batch: int = 8) -> None:
        self.model = model
        self.batches = windows.split(batch)
        self.sizes = Sizes.of(model, windows.shape[1])
        self.values: dict[str, Any] = {}
        self.meters: dict[str, Meter] = {}
        self.asked: set[str] = set()

    def _run(self) -> None:
        for ids in self.batches:
            self.model.model(input_ids=ids, use_cache=False)

    @gathered
    def moments(self) -> dict[Site, Moments]:
        """What each projection into the stream reads."""
        found: dict[Site, Moments] = {}
        hooks = []
        for kind, number, linear in readers(self.model):
            size = linear.in_features
            found[kind, number] = seen = Moments(0, torch.zeros(size), torch.zeros(size, size))
            hooks.append(linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.add(args[0])))
        self._observed(hooks)
        return found

    @gathered
    def influence(self) -> Influence:
        """How much each layer turns the stream, and how large the stream is."""
        count = len(layers_of(self.model))
        closeness, power = torch.zeros(count), torch.zeros(count)

        def look(number: int, before: Tensor, after: Tensor) -> None:
            closeness[number] += nn.functional.cosine_similarity(before, after, dim=-1).sum()
            power[number] += after.square().sum()

        hooks = [
            layer.register_forward_hook(lambda _, args, out, number=number: look(number, args[0], out))
            for number, layer in enumerate(layers_of(self.model))
        ]
        self._observed(hooks)
        tokens = sum(ids.numel() for ids in self.batches)
        return Influence(closeness / tokens, power / tokens)

    @gathered
    def streams(self) -> list[Tensor]:
        """The stream before the first layer and after each layer, ``[tokens, width]`` each."""
        parts: list[list[Tensor]] = [[] for _ in range(len(layers_of(self.model)) + 1)]
        first = layers_of(self.model)[0]
        hooks = [first.register_forward_pre_hook(lambda _, args: parts[0].append(args[0].flatten(0, 1)))]
        hooks += [
            layer.register_forward_hook(lambda _, args, out, number=number: parts[number + 1].append(out.flatten(0, 1)))
            for number, layer in enumerate(layers_of(self.model))
        ]
        self._observed(hooks)
        return [torch.cat(part) for part in parts]

    @gathered
    def salience(self) -> dict[str, Tensor]:
        """``|weight * gradient|`` of the mean loss of a next token, by parameter."""
        self.model.zero_grad()
        for ids in self.batches:
            with torch.enable_grad():
                loss = next_token_loss(self.model, ids) / len(self.batches)
                loss.backward()
        found = {
            name: (value * value.grad).abs().detach()
            for name, value in self.model.named_parameters()
            if value.grad is not None
        }
        self.model.zero_grad()
        return found

    def _observed(self, hooks: list[Any]) -> None:
        try:
            with torch.no_grad():
                self._run()
        finally:
            for hook in hooks:
                hook.remove()


def next_token_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token, in nats."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

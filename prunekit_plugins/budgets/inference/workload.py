"""Workloads: the calls at which costs are counted, where they aren't a call on the example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from prunekit_core.errors import ArgumentError, many, nearest
from prunekit_core.program.decoding import call_of, covering, entries, held, last_position, parameters_of
from prunekit_core.program.examples import Example, Runner, example_of, run_model
from prunekit_plugins.budgets.inference.cache import NAMES

_HEADLINE = "A workload is a table of whole numbers."
_HINT = 'workload={"batch": 8, "length": 512, "decode": 128}, or some of these'


@attrs.frozen
class Workload:
    """How a model is used, as far as costs depend on it.

    Attributes:
        batch: Examples of a batch; None for as many as the example inputs have.
        length: Tokens of each; None for as many as they have.
        decode: Tokens that are decoded then, one call for each, which is given the cache that the last one returned.
    """

    batch: int | None = None
    length: int | None = None
    decode: int = 0

    @classmethod
    def of(cls, given: object) -> Workload:
        """Reads a workload as it is given: a table with some of its attributes.

        Raises:
            ArgumentError: It is none, or holds something else.
        """
        names = [field.name for field in attrs.fields(cls)]
        if not isinstance(given, Mapping) or not given:
            raise ArgumentError(_HEADLINE, why=f"got {given!r}", hint=_HINT)
        for name, value in given.items():
            if name not in names:
                raise ArgumentError(f"A workload has no {name!r}.", hint=nearest(str(name), names))
            if type(value) is not int or value < (0 if name == "decode" else 1):
                raise ArgumentError(_HEADLINE, where=f"workload[{name!r}]", why=f"got {value!r}", hint=_HINT)
        return cls(**given)

    def __str__(self) -> str:
        return self._worded(counted=True)

    @property
    def of_calls(self) -> str:
        """The calls themselves, all of which are made."""
        return self._worded(counted=False)

    def _worded(self, *, counted: bool) -> str:
        words = [many(self.batch, "example", "examples")] if self.batch else []
        words += [many(self.length, "token", "tokens") + (" each" if self.batch else "")] if self.length else []
        words += [f"then {many(self.decode, 'token is', 'tokens are')} decoded"] if self.decode else []
        words += ["each counted as the mean of the first and the last"] if self.decode > 2 and counted else []
        return ", ".join(words)

    def examples(
        self,
        inputs: Any,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> list[Example]:
        """Makes the examples whose programs are counted, and how often each counts.

        Of ``m`` decoded tokens the first and the last one are recorded, behind a first call of as many tokens as lie in
        the cache then, and count ``m / 2`` times each, without that call: what grows linearly with the cache adds up
        to the sum over all tokens.

        Args:
            inputs: Example inputs; those of the workload are as many copies of them as are needed.
            forward_fn, output_transform: As for `Graph.of`.

        Raises:
            ArgumentError: The inputs have no batch or no tokens, or decoding isn't a plain call of the model.
        """
        plain = example_of(inputs, forward_fn, output_transform)
        if self.decode and plain.runner is not run_model:
            raise ArgumentError(
                "Tokens can be decoded by plain calls of the model only.",
                where="workload",
                why="forward_fn or output_transform runs it",
                hint='leave "decode" out, or wrap the model in a module that does what they do',
            )
        first = self._call(plain, 0)
        if not self.decode:
            return [attrs.evolve(first, counts=1.0)]
        timed, one, times = Generation(self.decode), Generation(1), self.decode / 2
        if self.decode == 1:
            return [attrs.evolve(first, counts=0.0, timed=timed), attrs.evolve(first, counts=1.0, runner=one)]
        last = self._call(plain, self.decode - 1)
        return [
            attrs.evolve(first, counts=1.0 - times, timed=timed),
            attrs.evolve(first, counts=times, runner=one),
            attrs.evolve(last, counts=-times),
            attrs.evolve(last, counts=times, runner=one),
        ]

    def made_of(self, inputs: Any) -> Example:
        """Makes all calls one example, to be run and measured as a whole: the first one, then those that decode.

        Args:
            inputs: Example inputs, as for `examples`.

        Raises:
            ArgumentError: See `examples`.
        """
        first = self.examples(inputs)[0]
        return attrs.evolve(first, runner=first.timed or first.runner, counts=1.0, timed=None)

    def _call(self, plain: Example, more: int) -> Example:
        """The first call, with so many tokens more."""
        given = [value for value in (*plain.args, *plain.kwargs.values()) if isinstance(value, torch.Tensor)]
        leading = next((value for value in given if value.dim() > 0), None)
        if leading is None:
            raise ArgumentError(
                "A workload needs example inputs with a batch.", why="none of them is a tensor with dims"
            )
        tokens = leading.shape[1] if leading.dim() in (2, 3) else None
        if tokens is None and (self.length or self.decode):
            raise ArgumentError(
                "These example inputs have no length.",
                where="workload",
                why=f"they are of shape {tuple(leading.shape)}; tokens lie along dim 1 of [batch, tokens(, features)]",
                hint="give example inputs of the size that costs are to be counted at",
            )
        length = None if tokens is None else (self.length or tokens) + more
        sizes = (leading.shape[0], self.batch or leading.shape[0]), (tokens, length)

        def sized(value: Any) -> Any:
            return _sized(value, sizes) if isinstance(value, torch.Tensor) else value

        args, kwargs = tuple(map(sized, plain.args)), {name: sized(value) for name, value in plain.kwargs.items()}
        return attrs.evolve(plain, args=args, kwargs=kwargs)


def _sized(value: torch.Tensor, sizes: tuple[tuple[int | None, int | None], ...]) -> torch.Tensor:
    """Repeats a tensor along its first dims, where they are a batch and tokens by their sizes."""
    for dim, (now, wanted) in enumerate(sizes):
        if wanted is not None and value.dim() > dim and value.shape[dim] == now and wanted != now:
            places = torch.arange(wanted, device=value.device) % value.shape[dim]
            value = value.index_select(dim, places)
    return value


class Used(nn.Module):
    """A model as a workload uses it: one call of it makes all calls of the workload.

    Args:
        model: The model.
        runner: What makes them.
    """

    def __init__(self, model: nn.Module, runner: Runner) -> None:
        super().__init__()
        self.model, self._runner = model, runner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the calls return."""
        return self._runner(self.model, args, kwargs)


@attrs.frozen(eq=False)
class Generation:
    """A `Runner` that calls a model, then decodes tokens one by one with the cache that it returns.

    Attributes:
        tokens: How many.
    """

    tokens: int

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns what every call returned, by name, and the last cache.

        None of the calls is lost, so that everything that they compute is needed.

        Raises:
            ArgumentError: The model returns no cache that its forward takes.
        """
        given = call_of(run_model, model, args, kwargs) or {}
        _refuse_encoder(given)
        outputs, covered = model(*args, **kwargs), given
        found: dict[Any, list[Any]] = {}
        for _ in range(self.tokens):
            handed = _cache(model, outputs, given)
            _add(found, outputs, handed)
            added = last_position(given)
            covered = covering(covered, added)
            cache = {argument: held(outputs, key) for key, argument in handed.items()}
            outputs = model(**{**added, **covered, **cache})
        _add(found, outputs, handed)
        return {**found, **{key: held(outputs, key) for key in handed}}


def _refuse_encoder(given: Mapping[str, Any]) -> None:
    """Raises an error for inputs of a decoder beside those of an encoder, which would run for each token again."""
    names = [str(name) for name, value in given.items() if str(name).startswith("decoder_") and value is not None]
    if names:
        raise ArgumentError(
            "Tokens of a model with an encoder can't be decoded in a workload.",
            where=", ".join(names),
            why="which calls follow the first one, and with what of the encoder, isn't known",
            hint='leave "decode" out, and give a batch and a length',
        )


def _add(found: dict[Any, list[Any]], outputs: Any, handed: Mapping[Any, str]) -> None:
    for key, value in entries(outputs):
        if key not in handed:
            found.setdefault(key, []).append(value)


def _cache(model: nn.Module, outputs: Any, given: Mapping[str, Any]) -> dict[Any, str]:
    """Where outputs hold what a model is given to decode with, and the arguments that take it, of the same names."""
    known = parameters_of(model.forward)
    found = {}
    for key, value in entries(outputs):
        if value is not None and not isinstance(value, torch.Tensor):
            argument = next((name for name in (key, *(NAMES if key in NAMES else ())) if name in known), None)
            if argument is not None and given.get(str(argument)) is None:
                found[key] = str(argument)
    if not found:
        raise ArgumentError(
            "The model returns no cache to decode with.",
            where=type(model).__name__,
            why="nothing with tensors in it is returned under the name of an argument of forward, for these inputs",
            hint='example inputs with use_cache=True, or a workload without "decode"',
        )
    return found

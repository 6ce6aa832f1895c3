"""A program in the making: productions add statements, and each one runs at once, so that only what runs stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import torch
from torch import nn

from tests.programs.grammar import prelude
from tests.programs.grammar.program import Statement

T = TypeVar("T")
LARGEST = 1e4
MOST = 20_000
BATCH = 2


class NoFitError(Exception):
    """A production has nothing to work on, or made something that can't be used."""


@attrs.frozen(eq=False)
class Value:
    """A tensor of the program, by name."""

    name: str
    tensor: torch.Tensor = attrs.field(repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.dim()


class Draft:
    """The program so far, with all its values.

    Args:
        seed: Of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.module: Any = nn.Module()
        self.space: dict[str, Any] = {**vars(prelude), "self": self.module}
        self.inputs: list[tuple[str, str]] = []
        self.layers: list[str] = []
        self.statements: list[Statement] = []
        self.values: dict[str, Value] = {}
        self._count = 0

    # what is drawn

    def pick(self, options: Sequence[T]) -> T:
        """Chooses one of some options."""
        return options[self.rng.randrange(len(options))]

    def chance(self, probability: float = 0.5) -> bool:
        """Tells whether something happens."""
        return self.rng.random() < probability

    def width(self) -> int:
        """Chooses a number of channels."""
        return self.pick((4, 6, 8, 8, 12, 16))

    def divisor(self, *sizes: int) -> int:
        """Chooses a common divisor, often more than one."""
        found = [d for d in range(1, min(sizes) + 1) if not any(size % d for size in sizes)]
        return self.pick(found[1:] or found)

    def take(
        self, *ndims: int, where: Callable[[Value], bool] = lambda value: True, of: Sequence[Value] | None = None
    ) -> Value:
        """Chooses a real-valued tensor, most often a late one.

        Args:
            ndims: Numbers of dims that it may have; any if none are given.
            where: What it must be like.
            of: The values to choose from; all by default.

        Raises:
            NoFitError: There is none.
        """
        pool = list(self.values.values()) if of is None else of
        fitting = [v for v in pool if v.tensor.is_floating_point() and (not ndims or v.ndim in ndims) and where(v)]
        if not fitting:
            raise NoFitError
        return fitting[-1] if self.chance(0.6) else self.pick(fitting)

    def alike(self, value: Value) -> Value:
        """Chooses another tensor of the same shape."""
        return self.take(where=lambda other: other.shape == value.shape and other.name != value.name)

    def dim(self, value: Value, first: int = 0) -> int:
        """Chooses a dim, mostly not the batch's."""
        if first >= value.ndim:
            raise NoFitError
        return self.rng.randrange(max(first, 1 if value.ndim > 1 and self.chance(0.9) else 0), value.ndim)

    def index(self, value: Value, dim: int) -> int:
        """Writes a dim from the front or from the back."""
        return dim - value.ndim if self.chance(0.4) else dim

    def size(self, value: Value, dim: int) -> str:
        """Writes a size: as a question, as a number, or as an attribute."""
        number = value.shape[dim]
        return self.pick(
            (
                f"{value}.shape[{dim}]",
                f"{value}.size({dim})",
                f"{value}.shape[{dim}]",
                str(number),
                self.constant(number),
            )
        )

    def constant(self, number: int) -> str:
        """Puts a number into an attribute."""
        return self.layer(str(number), "k")

    # what is made

    def name(self, letter: str) -> str:
        """Returns a name that isn't used yet."""
        self._count += 1
        return f"{letter}{self._count}"

    def layer(self, text: str, letter: str = "m") -> str:
        """Makes an attribute of the model, and returns how it is read."""
        where = f"self.{self.name(letter)}"
        self.set(f"{where} = {text}")
        return where

    def set(self, line: str) -> None:
        """Adds a line to the constructor."""
        exec(line, self.space)
        self.module.double()
        self.layers.append(line)

    def parameter(self, *shape: int) -> str:
        """Makes a parameter."""
        return self.layer(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}) * 0.5)", "p")

    def buffer(self, *shape: int) -> str:
        """Makes a buffer of real numbers."""
        name = self.name("b")
        self.set(f'self.register_buffer("{name}", torch.randn({", ".join(map(str, shape))}))\nself.{name}')
        return f"self.{name}"

    def let(self, text: str) -> Value:
        """Adds a statement that makes a value: an expression of it."""
        name = self.name("v")
        return self.run(f"{name} = {text}", name)

    def run(self, text: str, target: str) -> Value:
        """Adds a statement that makes a value under a name."""
        self.do(text, target)
        made = self.space[target]
        if not isinstance(made, torch.Tensor):
            raise NoFitError
        value = Value(target, made)
        self.values[target] = value
        return value

    def do(self, text: str, target: str = "") -> None:
        """Adds a statement."""
        with torch.no_grad():
            exec(text, self.space)
        self.statements.append(Statement(text, target))

    def feed(self, name: str, text: str) -> Value:
        """Adds an input."""
        self.inputs.append((name, text))
        self.space[name] = eval(text, self.space)
        return self.let(f"{name}.clone()" if self.chance(0.1) else f"{name} * 1.0" if self.chance(0.1) else name)

    def check(self, names: Sequence[str]) -> None:
        """Raises `NoFitError` if a value is too large, not finite, or too many numbers."""
        for name in names:
            tensor = self.values[name].tensor
            if tensor.numel() > MOST or not tensor.numel():
                raise NoFitError
            if tensor.is_floating_point() and not bool((tensor.abs() < LARGEST).all()):
                raise NoFitError

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Takes back what was added inside if it raises."""
        layers, statements, values = len(self.layers), len(self.statements), list(self.values)
        versions = {name: _version(value.tensor) for name, value in self.values.items()}
        inputs = len(self.inputs)
        try:
            yield
            changed = [n for n in values if _version(self.values[n].tensor) != versions[n]]
            self.check([*(n for n in self.values if n not in versions), *changed])
        except Exception:
            del self.layers[layers:], self.statements[statements:], self.inputs[inputs:]
            self.values = {name: self.values[name] for name in values}
            raise


def _version(tensor: torch.Tensor) -> int:
    """Counts the writes into a tensor, where they are counted."""
    return 0 if tensor.is_inference() else tensor._version

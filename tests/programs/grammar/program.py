"""A program as data: lines that make its layers, statements of its forward, what it returns and what it is given."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from tests.programs.grammar import prelude

NAME = re.compile(r"\bv\d+\b")
ATTRIBUTE = re.compile(r"self\.(\w+)")


@attrs.frozen
class Statement:
    """One statement of a forward.

    Attributes:
        text: Python source, one line or several.
        target: The value that it makes; empty if it only writes into one.
    """

    text: str
    target: str = ""

    @property
    def names(self) -> set[str]:
        """All values that it names."""
        return set(NAME.findall(self.text))

    @property
    def reads(self) -> set[str]:
        """The values that must exist before it."""
        return self.names - {self.target}


@attrs.frozen
class Program:
    """A model and an example for it.

    Attributes:
        seed: What the values of parameters and inputs are drawn from, and how much is pruned.
        inputs: Name and source of every input, in order.
        layers: Lines of the constructor, each setting attributes of ``self``.
        statements: Lines of the forward.
        outputs: Source of what is returned.
        made_by: Names of the productions that made it.
        follows: Whether numbers of it were made to follow sizes.
    """

    seed: int
    inputs: tuple[tuple[str, str], ...]
    layers: tuple[str, ...]
    statements: tuple[Statement, ...]
    outputs: str
    made_by: tuple[str, ...] = attrs.field(default=(), eq=False)
    follows: bool = False

    @property
    def any_batch(self) -> bool:
        """Whether it is the same program for any batch: numbers that follow a size may meet that of the example's batch
        by chance, and rows are dealt out to experts by numbers."""
        return not self.follows and not any("_grouped_mm" in statement.text for statement in self.statements)

    def used_layers(self) -> tuple[str, ...]:
        """Lists the lines of the constructor that the forward needs, directly or by another one of them."""
        found: list[str] = []
        needed = set(ATTRIBUTE.findall(" ".join([s.text for s in self.statements] + [self.outputs])))
        for line in reversed(self.layers):
            names = set(ATTRIBUTE.findall(line))
            if names & needed:
                found.insert(0, line)
                needed |= names
        return tuple(found)

    def source(self) -> str:
        """The program as Python source: a class ``Program``."""
        lines = ["class Program(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines.extend(textwrap.indent(line, " " * 8) for line in self.used_layers())
        lines.append("")
        lines.append(f"    def forward(self, {', '.join(name for name, _ in self.inputs)}):")
        lines.extend(textwrap.indent(statement.text, " " * 8) for statement in self.statements)
        lines.append(f"        return {self.outputs}")
        return "\n".join(lines) + "\n"

    def given(self) -> str:
        """Source of the inputs, as a dict of keyword arguments."""
        return "{" + ", ".join(f'"{name}": {text}' for name, text in self.inputs) + "}"

    def build(self, variant: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """Makes the model, in float64 and eval mode, and its inputs.

        Args:
            variant: Another one draws other values.
        """
        space = dict(vars(prelude))
        exec(compile(self.source(), "<random program>", "exec"), space)
        torch.default_generator.manual_seed(self.seed + 1_000_003 * variant)
        with in_float64(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return shake(space["Program"]()).eval(), eval(self.given(), dict(space))

    def file(self, why: str) -> str:
        """The program as a file that runs on its own where the tests can be imported."""
        head = Path(prelude.__file__).read_text().split('"""\n', 1)[1]
        return (
            f'"""{why}"""\n{head}\n\n{self.source()}\n\n'
            'if __name__ == "__main__":\n'
            "    from tests.programs.grammar.judge import judge\n"
            "    from tests.programs.grammar.program import shake\n\n"
            f"    torch.manual_seed({self.seed})\n"
            "    torch.set_default_dtype(torch.float64)\n"
            "    model = shake(Program()).eval()\n"
            f"    verdict = judge(model, {self.given()}, {self.seed})\n"
            "    print(verdict)\n"
            "    raise SystemExit(verdict.disagrees)\n"
        )


@contextmanager
def in_float64() -> Iterator[None]:
    """New tensors are of 64 bits, so that an error isn't taken for rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def shake(model: nn.Module) -> nn.Module:
    """Gives every parameter distinct values, and norms the statistics of something that was trained."""
    with torch.no_grad():
        for module in model.modules():
            running: Any = getattr(module, "running_mean", None)
            if isinstance(running, torch.Tensor):
                running.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[operator, union-attr]
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model

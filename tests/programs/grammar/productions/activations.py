"""Pointwise functions of one tensor."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft
from tests.programs.grammar.productions.book import Book

BOOK = Book("activations")
FUNCTIONS = (
    "F.relu({v})", "F.gelu({v})", "{v}.tanh()", "{v}.sigmoid()", "F.silu({v})", "F.softplus({v}, 1.0, 20.0)",
    "F.elu({v}, 1.0) + 1.0", "F.leaky_relu({v}, 0.2)", "{v}.exp().clamp(0.0, 4.0)", "{v}.clamp(-1.0, 1.0)",
)


@BOOK.add(4)
def activation(draft: Draft) -> None:
    value = draft.take()
    draft.let(draft.pick(FUNCTIONS).format(v=value))

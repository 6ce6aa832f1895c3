"""The productions of the grammar, one file per family."""

from __future__ import annotations

from tests.programs.grammar.productions import (
    activations,
    attentions,
    layers,
    norms,
    pooling,
    reductions,
    shapes,
)
from tests.programs.grammar.productions.book import Production

PRODUCTIONS: dict[str, Production] = {
    name: production
    for family in (layers, activations, shapes, norms, attentions, pooling, reductions)
    for name, production in family.BOOK.productions.items()
}

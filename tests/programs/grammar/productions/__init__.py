"""The productions of the grammar, one file per family."""

from __future__ import annotations

from tests.programs.grammar.productions import (
    activations,
    asides,
    attentions,
    flow,
    indexing,
    layers,
    lowered,
    norms,
    pooling,
    reductions,
    shapes,
    trained,
    writes,
)
from tests.programs.grammar.productions.book import Production

FAMILIES = (
    layers,
    activations,
    shapes,
    norms,
    attentions,
    pooling,
    reductions,
    indexing,
    writes,
    flow,
    trained,
    asides,
    lowered,
)
PRODUCTIONS: dict[str, Production] = {
    name: production for family in FAMILIES for name, production in family.BOOK.productions.items()
}

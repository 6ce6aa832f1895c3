"""Polynomials in the sizes of groups: what a cost becomes once it is computed with layouts instead of numbers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import torch

from prunekit_core.algebra.layout import Concat, Fixed, Layout, Listed, Product, Units

Sizes = Mapping[str, int]
"""Number of units that stay, per group; a group that is absent keeps all its units."""

Term = tuple[str, ...]
"""Groups whose sizes are multiplied, sorted; a group may stand several times."""


@attrs.frozen(eq=False)
class Polynomial:
    """A sum of products of group sizes with whole coefficients; adds and multiplies like an integer.

    Attributes:
        terms: Product of groups to its coefficient.
    """

    terms: Mapping[Term, int]

    def __add__(self, other: Number) -> Polynomial:
        terms = dict(self.terms)
        for term, coefficient in as_polynomial(other).terms.items():
            terms[term] = terms.get(term, 0) + coefficient
        return Polynomial(terms)

    def __mul__(self, other: Number) -> Polynomial:
        if isinstance(other, int):
            return Polynomial({term: coefficient * other for term, coefficient in self.terms.items()})
        terms: dict[Term, int] = {}
        for first, a in self.terms.items():
            for second, b in other.terms.items():
                term = tuple(sorted(first + second))
                terms[term] = terms.get(term, 0) + a * b
        return Polynomial(terms)

    __radd__ = __add__
    __rmul__ = __mul__


Number = int | Polynomial
"""A size: a number, or a polynomial where it depends on groups."""


def as_polynomial(value: Number) -> Polynomial:
    """Returns a number as a polynomial."""
    return value if isinstance(value, Polynomial) else Polynomial({(): value} if value else {})


def multiplied(sizes: Iterable[Number]) -> Number:
    """Returns the product of sizes."""
    return functools.reduce(operator.mul, sizes, 1)


def size_of(layout: Layout) -> Number:
    """Returns the size of a layout as a polynomial in the sizes of its groups, or as a number where it has none."""
    match layout:
        case Fixed(size):
            return size
        case Units(group):
            return Polynomial({(group,): 1})
        case Listed():
            return len(layout.kept)
        case Product(parts):
            return multiplied(size_of(part) for part in parts)
        case Concat(parts):
            return functools.reduce(operator.add, (size_of(part) for part in parts), 0)


class SymbolicSizer:
    """Computes sizes of layouts as polynomials, each layout object once; stands where a `Sizer` may stand."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Layout, Number]] = {}

    def __call__(self, layout: Layout) -> Number:
        """Returns the size of a layout."""
        known = self._known.get(id(layout))
        if known is None:
            known = self._known[id(layout)] = (layout, size_of(layout))
        return known[1]


def compile_polynomials(
    polynomials: Sequence[Polynomial], groups: Mapping[str, int]
) -> Callable[[Sizes], torch.Tensor]:
    """Makes one fast function of several polynomials.

    Args:
        polynomials: The polynomials.
        groups: Size of every group at analysis.

    Returns:
        A function from sizes to a tensor ``[len(polynomials)]``, int64 on the CPU, exact below ``2**63``.
    """
    names = list(dict.fromkeys(name for p in polynomials for term in p.terms for name in term))
    places = {name: place for place, name in enumerate(names)}
    degree = max((len(term) for p in polynomials for term in p.terms), default=0)
    factors = [
        [places[name] for name in term] + [len(names)] * (degree - len(term)) for p in polynomials for term in p.terms
    ]
    columns = [torch.tensor([row[place] for row in factors], dtype=torch.long, device="cpu") for place in range(degree)]
    coefficients = torch.tensor([c for p in polynomials for c in p.terms.values()], dtype=torch.long, device="cpu")
    owners = torch.tensor(
        [number for number, p in enumerate(polynomials) for _ in p.terms], dtype=torch.long, device="cpu"
    )
    whole = [(name, groups[name]) for name in names]
    zeros = torch.zeros(len(polynomials), dtype=torch.long, device="cpu")

    def evaluate(sizes: Sizes) -> torch.Tensor:
        at = torch.tensor([sizes.get(name, size) for name, size in whole] + [1], dtype=torch.long, device="cpu")
        products = coefficients
        for column in columns:
            products = products * at[column]
        if len(polynomials) == 1:
            return products.sum().reshape(1)
        return zeros.index_add(0, owners, products)

    return evaluate

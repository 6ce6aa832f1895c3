"""Polynomials in the sizes of groups: what a cost becomes once it is computed with layouts instead of numbers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

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


BLOCK = 1 << 20
"""Values of terms that are computed at a time."""


class Evaluator:
    """Several polynomials as one fast function of sizes, exact below ``2**63``.

    Args:
        polynomials: The polynomials.
        groups: Size of every group at analysis.
    """

    def __init__(self, polynomials: Sequence[Polynomial], groups: Mapping[str, int]) -> None:
        names = list(dict.fromkeys(name for p in polynomials for term in p.terms for name in term))
        self._places = {name: place for place, name in enumerate(names)}
        self._whole = [(name, groups[name]) for name in names]
        degree = max((len(term) for p in polynomials for term in p.terms), default=0)
        factors = [  # the place behind the last size holds 1
            [*map(self._places.__getitem__, term), *[len(names)] * (degree - len(term))]
            for p in polynomials
            for term in p.terms
        ]
        self._columns = [_integers([row[place] for row in factors]) for place in range(degree)]
        self._coefficients = _integers([c for p in polynomials for c in p.terms.values()])
        self._owners = _integers([number for number, p in enumerate(polynomials) for _ in p.terms])
        self._count = len(polynomials)

    def __call__(self, sizes: Sizes) -> torch.Tensor:
        """Returns the values at some sizes: tensor ``[polynomials]``, int64 on the CPU."""
        return self._at(self._row(sizes)[None])[0]

    def each(self, sizes: Sizes, changes: Sequence[Sizes]) -> torch.Tensor:
        """Returns the values after each of several changes of some sizes, without the others.

        Returns:
            Tensor ``[changes, polynomials]``, int64 on the CPU.
        """
        step = max(1, BLOCK // max(1, len(self._coefficients)))
        parts = [changes[start : start + step] for start in range(0, len(changes), step)]
        found = [self._at(self._rows(sizes, part)) for part in parts]
        return torch.cat(found) if found else _integers([]).reshape(0, self._count)

    def _rows(self, sizes: Sizes, changes: Sequence[Sizes]) -> torch.Tensor:
        """Sizes after each change, and 1: tensor ``[changes, names and 1]``."""
        rows = self._row(sizes).repeat(len(changes), 1)
        changed = [
            (number, self._places[name], size)
            for number, change in enumerate(changes)
            for name, size in change.items()
            if name in self._places
        ]
        if changed:
            numbers, places, values = map(_integers, zip(*changed, strict=True))
            rows[numbers, places] = values
        return rows

    def _row(self, sizes: Sizes) -> torch.Tensor:
        return _integers([*[sizes.get(name, size) for name, size in self._whole], 1])

    def _at(self, rows: torch.Tensor) -> torch.Tensor:
        """Values at sizes ``[points, names and 1]``: tensor ``[points, polynomials]``."""
        products = self._coefficients.expand(len(rows), -1)
        for column in self._columns:
            products = products * rows[:, column]
        if self._count == 1:
            return products.sum(1, keepdim=True)
        return products.new_zeros(len(rows), self._count).index_add(1, self._owners, products)


def _integers(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device="cpu")


def compile_polynomials(polynomials: Sequence[Polynomial], groups: Mapping[str, int]) -> Evaluator:
    """Makes one fast function of several polynomials.

    Args:
        polynomials: The polynomials.
        groups: Size of every group at analysis.

    Returns:
        A function from sizes to a tensor ``[len(polynomials)]``, int64 on the CPU, exact below ``2**63``.
    """
    return Evaluator(polynomials, groups)

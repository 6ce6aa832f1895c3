"""The axis algebra against brute force: tensors of labels go through chains of real torch operations.

Every step is done on a tensor of labels and on axes. Then units of the free leaves are removed: the sliced inputs
go through the same chain with the sizes that the axes predict, and must give, after every step, exactly the slice of
the original that the axes of the result name.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st

from prunekit_core.algebra.axes import (
    Axis,
    AxisMismatchError,
    Form,
    concat,
    cut,
    is_pinned,
    leaves,
    pin,
    product,
    regroup,
    resolve,
    split,
    tie,
)
from prunekit_core.algebra.reasons import Reason

SHAPES = ((4,), (6, 2), (12,), (2, 8), (3, 4), (2, 3, 4), (24,), (8,), (1, 6), (5, 4), (16,), (2, 2, 6))
GIVEN_UP = Reason("not understood")
Keep = dict[int, list[int]]


@attrs.define(eq=False)
class Tensor:
    """Labels, and what the axes say about them."""

    labels: torch.Tensor
    axes: list[Axis]


@attrs.define(eq=False)
class Step:
    """One operation: how to run it on tensors, given the axes of its results."""

    run: Callable[[list[torch.Tensor], list[list[int]]], list[torch.Tensor]]
    inputs: list[int]
    outputs: list[int]
    what: str


def positions(axis: Axis, keep: Keep) -> list[int]:
    """Kept positions of an axis, written down from the meaning of the three forms alone."""
    root = resolve(axis)
    if root.form is Form.LEAF:
        return keep.get(id(root), list(range(root.size)))
    if root.form is Form.PRODUCT:
        found = [0]
        for part in root.parts:
            size = resolve(part).size
            found = [outer * size + inner for outer in found for inner in positions(part, keep)]
        return found
    found, offset = [], 0
    for part in root.parts:
        found.extend(offset + position for position in positions(part, keep))
        offset += resolve(part).size
    return found


def take(labels: torch.Tensor, axes: list[Axis], keep: Keep) -> torch.Tensor:
    for dim, axis in enumerate(axes):
        labels = labels.index_select(dim, torch.tensor(positions(axis, keep), dtype=torch.long))
    return labels


def factorise(size: int, number: int) -> list[int]:
    """Reads a number as a way to write a size as a product."""
    found = []
    while size > 1 and len(found) < 4:
        options = [d for d in range(2, size + 1) if size % d == 0]
        number, choice = divmod(number, len(options))
        found.append(options[choice])
        size //= options[choice]
    return [*found, size] if size > 1 or not found else found


class Machine:
    """Runs a program, given as numbers, on labels and axes at once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []
        self.gave_up = 0

    def input(self, number: int) -> None:
        shape = SHAPES[number % len(SHAPES)]
        start = 1 + 1000 * len(self.tensors)
        labels = torch.arange(start, start + math.prod(shape)).view(shape)
        self.inputs.append(len(self.tensors))
        self.tensors.append(Tensor(labels, [Axis(size) for size in shape]))

    def pick(self, number: int) -> int:
        return number % len(self.tensors)

    def step(self, code: int, a: int, b: int, c: int) -> None:
        (
            self._reshape,
            self._permute,
            self._cat,
            self._cut,
            self._add,
            self._split,
            self._sum,
            self._expand,
            self._pin,
            self._chunk,
        )[code](a, b, c)

    def _do(
        self,
        what: str,
        inputs: list[int],
        run: Callable[[list[torch.Tensor], list[list[int]]], list[torch.Tensor]],
        shapes: list[list[int]],
        relate: Callable[[list[list[Axis]]], list[list[Axis]]],
    ) -> None:
        results = run([self.tensors[index].labels for index in inputs], shapes)
        given = [self.tensors[index].axes for index in inputs]
        try:
            related = relate(given)
        except AxisMismatchError:
            # as the engine does: everything that the operation touched is pinned
            self.gave_up += 1
            for axes in given:
                for axis in axes:
                    pin(axis, GIVEN_UP)
            related = [[Axis(size, pinned=GIVEN_UP) for size in result.shape] for result in results]
        outputs = list(range(len(self.tensors), len(self.tensors) + len(results)))
        for result, axes in zip(results, related, strict=True):
            assert [resolve(axis).size for axis in axes] == list(result.shape), what
            self.tensors.append(Tensor(result, axes))
        self.steps.append(Step(run, inputs, outputs, what))

    def _reshape(self, a: int, b: int, c: int) -> None:
        index = self.pick(a)
        shape = factorise(self.tensors[index].labels.numel(), b)
        if c % 4 == 0:
            shape.insert(c % (len(shape) + 1), 1)
        self._do(
            f"reshape {shape}",
            [index],
            lambda xs, shapes: [xs[0].reshape(shapes[0])],
            [shape],
            lambda given: [regroup(given[0], shape)],
        )

    def _permute(self, a: int, b: int, c: int) -> None:
        index = self.pick(a)
        dims = list(range(self.tensors[index].labels.dim()))
        random.Random(b).shuffle(dims)
        self._do(
            f"permute {dims}",
            [index],
            lambda xs, shapes: [xs[0].permute(dims)],
            [],
            lambda given: [[given[0][dim] for dim in dims]],
        )

    def _cat(self, a: int, b: int, c: int) -> None:
        first = self.pick(a)
        shape = self.tensors[first].labels.shape
        dim = c % len(shape)
        others = [
            index
            for index, tensor in enumerate(self.tensors)
            if tensor.labels.dim() == len(shape)
            and all(tensor.labels.shape[k] == shape[k] for k in range(len(shape)) if k != dim)
            and tensor.labels.shape[dim] + shape[dim] <= 48
        ]
        if not others:
            return
        second = others[b % len(others)]

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            result = list(given[0])
            for k in range(len(result)):
                if k != dim:
                    tie(given[0][k], given[1][k])
            result[dim] = concat([given[0][dim], given[1][dim]])
            return [result]

        self._do(f"cat dim {dim}", [first, second], lambda xs, shapes: [torch.cat(xs, dim)], [], relate)

    def _cut(self, a: int, b: int, c: int) -> None:
        index = self.pick(a)
        shape = self.tensors[index].labels.shape
        dim = c % len(shape)
        size = shape[dim]
        points = sorted({0, size, b % (size + 1), (b // (size + 1)) % (size + 1)})
        if c % 7 == 0:
            points.insert(1, points[0])
        if len(points) < 2:
            return
        widths = [high - low for low, high in itertools.pairwise(points)]

        def run(xs: list[torch.Tensor], shapes: list[list[int]]) -> list[torch.Tensor]:
            return list(xs[0].split([s[dim] for s in shapes], dim))

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            parts = cut(given[0][dim], points)
            return [[part if k == dim else axis for k, axis in enumerate(given[0])] for part in parts]

        shapes = [[width if k == dim else n for k, n in enumerate(shape)] for width in widths]
        self._do(f"cut {points} dim {dim}", [index], run, shapes, relate)

    def _chunk(self, a: int, b: int, c: int) -> None:
        index = self.pick(a)
        shape = self.tensors[index].labels.shape
        dim = c % len(shape)
        if shape[dim] < 2:
            return
        count = [d for d in range(2, shape[dim] + 1) if shape[dim] % d == 0][b % 2 - 1]
        width = shape[dim] // count

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            parts = cut(given[0][dim], list(range(0, shape[dim] + 1, width)))
            for part in parts[1:]:
                tie(parts[0], part)
            return [[part if k == dim else axis for k, axis in enumerate(given[0])] for part in parts]

        self._do(f"chunk {count} dim {dim}", [index], lambda xs, s: list(xs[0].chunk(count, dim)), [], relate)

    def _add(self, a: int, b: int, c: int) -> None:
        first = self.pick(a)
        shape = self.tensors[first].labels.shape
        others = [k for k, tensor in enumerate(self.tensors) if tensor.labels.shape == shape]
        second = others[b % len(others)]

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            for x, y in zip(*given, strict=True):
                tie(x, y)
            return [list(given[c % 2])]

        self._do("add", [first, second], lambda xs, shapes: [xs[0] * 7919 + xs[1] * 31], [], relate)

    def _split(self, a: int, b: int, c: int) -> None:
        """Reads one dim as two, as grouped convolutions do."""
        index = self.pick(a)
        shape = list(self.tensors[index].labels.shape)
        dim = c % len(shape)
        options = [d for d in range(1, shape[dim] + 1) if shape[dim] % d == 0]
        if not options:
            return
        outer = options[b % len(options)]
        fresh = [*shape[:dim], outer, shape[dim] // outer, *shape[dim + 1 :]]

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            return [[*given[0][:dim], *split(given[0][dim], outer, shape[dim] // outer), *given[0][dim + 1 :]]]

        self._do(f"split dim {dim}", [index], lambda xs, shapes: [xs[0].reshape(shapes[0])], [fresh], relate)

    def _sum(self, a: int, b: int, c: int) -> None:
        """Drops a dim by taking its pinned first position."""
        index = self.pick(a)
        if self.tensors[index].labels.dim() < 2:
            return
        dim = b % self.tensors[index].labels.dim()
        if self.tensors[index].labels.shape[dim] == 0:
            return

        def relate(given: list[list[Axis]]) -> list[list[Axis]]:
            pin(given[0][dim], Reason("selected"))
            return [[axis for k, axis in enumerate(given[0]) if k != dim]]

        self._do(f"select dim {dim}", [index], lambda xs, shapes: [xs[0].select(dim, 0)], [], relate)

    def _expand(self, a: int, b: int, c: int) -> None:
        """Repeats every unit of a dim: a fresh free factor."""
        index = self.pick(a)
        shape = list(self.tensors[index].labels.shape)
        dim, times = b % len(shape), 2 + c % 2
        if math.prod(shape) * times > 200:
            return
        inner = bool(c % 4 // 2)
        fresh = [*shape[: dim + inner], times, *shape[dim + inner :]]
        self._do(
            f"expand dim {dim}",
            [index],
            lambda xs, shapes: [xs[0].unsqueeze(dim + inner).expand(shapes[0])],
            [fresh],
            lambda given: [[*given[0][: dim + inner], Axis(times), *given[0][dim + inner :]]],
        )

    def _pin(self, a: int, b: int, c: int) -> None:
        if c % 3 == 0:
            axes = self.tensors[self.pick(a)].axes
            pin(axes[b % len(axes)], Reason("a test"))

    # -- the proof

    def free_leaves(self) -> list[Axis]:
        found = {id(leaf): leaf for tensor in self.tensors for axis in tensor.axes for leaf in leaves(axis)}
        return [leaf for leaf in found.values() if leaf.reason is None and leaf.size > 1]

    def check(self, seed: int) -> int:
        """Removes units at random, runs everything again, compares; returns how many units went."""
        chance = random.Random(seed)
        keep: Keep = {}
        gone = 0
        for leaf in self.free_leaves():
            keep[id(leaf)] = sorted(chance.sample(range(leaf.size), chance.randint(1, leaf.size)))
            gone += leaf.size - len(keep[id(leaf)])
        made = {index: take(self.tensors[index].labels, self.tensors[index].axes, keep) for index in self.inputs}
        for step in self.steps:
            shapes = [[len(positions(axis, keep)) for axis in self.tensors[index].axes] for index in step.outputs]
            results = step.run([made[index] for index in step.inputs], shapes)
            for index, result in zip(step.outputs, results, strict=True):
                expected = take(self.tensors[index].labels, self.tensors[index].axes, keep)
                assert torch.equal(result, expected), f"{step.what}: {self.tensors[index].axes}"
                made[index] = result
        return gone


numbers = st.integers(0, 2**12)
programs = st.lists(st.tuples(st.integers(0, 9), numbers, numbers, numbers), max_size=8)


def run(inputs: list[int], program: list[tuple[int, int, int, int]]) -> Machine:
    machine = Machine()
    for number in inputs:
        machine.input(number)
    for step in program:
        machine.step(*step)
    return machine


@pytest.mark.slow
@settings(max_examples=1000)
@given(st.lists(numbers, min_size=1, max_size=3), programs, st.integers(0, 99))
def test_slicing_commutes_with_every_chain(inputs, program, seed) -> None:  # type: ignore[no-untyped-def]
    run(inputs, program).check(seed)


def test_many_seeded_chains_and_they_are_not_vacuous() -> None:
    """Two thousand longer chains; most of them lose units, and most steps are understood."""
    lost = gave_up = steps = 0
    for seed in range(2000):
        chance = random.Random(seed)
        inputs = [chance.randrange(99) for _ in range(chance.randint(1, 3))]
        program = [
            (chance.randrange(10), *(chance.randrange(4096) for _ in "abc")) for _ in range(chance.randint(1, 9))
        ]
        machine = run(inputs, program)
        lost += machine.check(seed) > 0
        gave_up += machine.gave_up
        steps += len(machine.steps)
    assert lost > 1200
    assert 0 < gave_up < 0.2 * steps


def test_the_comparison_can_fail() -> None:
    """An algebra that ties nothing is caught."""
    machine = Machine()
    machine.input(7)
    machine.input(7)
    machine._do("add", [0, 1], lambda xs, shapes: [xs[0] + xs[1]], [], lambda given: [list(given[0])])
    caught = 0
    for seed in range(20):
        try:
            machine.check(seed)
        except (AssertionError, RuntimeError):
            caught += 1
    assert caught > 10


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_regroup_keeps_the_product(sizes, data) -> None:  # type: ignore[no-untyped-def]
    """Whatever is dealt out multiplies back to the same axis: regrouping to the old sizes gives the old axes."""
    axes = [Axis(size) for size in sizes]
    total = math.prod(sizes)
    shape = factorise(total, data.draw(st.integers(0, 500)))
    try:
        new = regroup(axes, shape)
    except AxisMismatchError:
        return
    assert [resolve(axis).size for axis in new] == shape
    back = regroup(new, sizes)
    keep = {id(leaf): [0] for axis in axes for leaf in leaves(axis) if leaf.size > 1 and leaf.reason is None}
    for old, again in zip(axes, back, strict=True):
        assert positions(old, keep) == positions(again, keep)
    assert positions(product(axes), keep) == positions(product(new), keep)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_cut_and_concat_are_inverse(sizes, data) -> None:  # type: ignore[no-untyped-def]
    axis = Axis(sum(sizes))
    points = [0]
    for size in sizes:
        points.append(points[-1] + size)
    pieces = cut(axis, points)
    assert [resolve(piece).size for piece in pieces] == sizes
    joined = concat(pieces)
    keep = {
        id(leaf): data.draw(st.lists(st.integers(0, leaf.size - 1), unique=True, min_size=1).map(sorted))
        for leaf in leaves(axis)
        if leaf.size > 1
    }
    assert positions(joined, keep) == positions(axis, keep)


@given(st.lists(numbers, min_size=1, max_size=2), programs)
def test_pinned_axes_stay_pinned(inputs, program) -> None:  # type: ignore[no-untyped-def]
    """Nothing that is done to an axis later unpins it."""
    machine = run(inputs, [])
    for tensor in machine.tensors:
        for axis in tensor.axes:
            pin(axis, Reason("a test"))
    before = [axis for tensor in machine.tensors for axis in tensor.axes]
    for step in program:
        machine.step(*step)
    for axis in before:
        assert is_pinned(axis)
        assert all(leaf.reason is not None or leaf.size <= 1 for leaf in leaves(axis))


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(2, 12), st.integers(1, 6), st.data())
def test_groups_over_a_concat_lose_the_same_units_each(parts, groups, scale, data) -> None:  # type: ignore[no-untyped-def]
    """Segments that are no multiples of the groups' width: runs of the common divisor, cut alike everywhere."""
    widths = [part * scale for part in parts]
    widths[-1] += -sum(widths) % groups
    width = sum(widths) // groups
    unit = math.gcd(width, *widths)
    joined = concat([Axis(size) for size in widths])
    try:
        outer, inner = split(joined, groups, width)
    except AxisMismatchError:
        assert unit == 1
        return
    free = [leaf for leaf in leaves(inner) if leaf.reason is None and leaf.size > 1]
    assert [leaf.size for leaf in free] == ([unit] if unit > 1 else [])
    if not free:
        return
    kept = sorted(data.draw(st.sets(st.integers(0, unit - 1), min_size=1)))
    keep = {id(free[0]): kept}
    expected = [place for place in range(sum(widths)) if place % unit in kept]
    assert positions(joined, keep) == expected
    assert [p * width + q for p in positions(outer, keep) for q in positions(inner, keep)] == expected

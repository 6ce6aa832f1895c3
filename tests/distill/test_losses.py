"""Losses against computations of another kind in float64, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor

from prunekit_plugins.distill.losses import (
    cross_entropies,
    divergences,
    mean_over,
    relative_error,
    top_divergences,
)


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def divergence_by_hand(student: list[float], teacher: list[float], temperature: float) -> float:
    p, q = ([math.exp(value / temperature) for value in row] for row in (teacher, student))
    p, q = ([value / sum(row) for value in row] for row in (p, q))
    return temperature**2 * math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_divergences_are_those_of_the_definition(temperature: float) -> None:
    student, teacher = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    found = divergences(student, teacher, temperature)
    rows = zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True)
    expected = torch.tensor([divergence_by_hand(a, b, temperature) for a, b in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected.reshape(2, 3), rtol=1e-12, atol=1e-12)


def test_gradients_hardly_depend_on_the_temperature_where_it_is_high() -> None:
    """For large temperatures the gradient is that of half the squared distance of centred logits, over the classes."""
    student, teacher = logits(0, 4, 6).requires_grad_(), logits(1, 4, 6)
    (slope,) = torch.autograd.grad(divergences(student, teacher, 1e4).sum(), student)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(slope, centred.detach() / 6, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("top", [1, 3, 5])
def test_top_divergences_are_those_of_merged_outcomes(top: int) -> None:
    student, teacher, temperature = logits(2, 4, 5), logits(3, 4, 5), 2.0
    values, classes = teacher.topk(top, dim=-1)
    rest = (teacher / temperature).scatter(-1, classes, -torch.inf).logsumexp(-1)
    found = top_divergences(student, values, classes, rest, temperature)
    p, q = ((t / temperature).softmax(-1) for t in (teacher, student))
    expected = []
    for row in range(4):
        named = classes[row].tolist()
        others = [c for c in range(5) if c not in named]
        pairs = [(float(p[row, c]), float(q[row, c])) for c in named]
        if others:
            pairs.append((float(p[row, others].sum()), float(q[row, others].sum())))
        expected.append(temperature**2 * math.fsum(a * math.log(a / b) for a, b in pairs))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 1000), top=st.integers(1, 8), temperature=st.floats(0.5, 8))
def test_top_divergences_are_never_above_all_and_equal_where_all_are_there(
    seed: int, top: int, temperature: float
) -> None:
    student, teacher = logits(seed, 3, 8), logits(seed + 5000, 3, 8)
    values, classes = teacher.topk(top, dim=-1)
    rest = (teacher / temperature).scatter(-1, classes, -torch.inf).logsumexp(-1)
    found = top_divergences(student, values, classes, rest, temperature)
    every = divergences(student, teacher, temperature)
    assert bool((found <= every + 1e-9).all())
    assert bool((found >= -1e-9).all())
    if top == 8:
        torch.testing.assert_close(found, every)


def test_cross_entropies_leave_ignored_positions_out() -> None:
    values, labels = logits(4, 2, 3, 5), torch.tensor([[0, 4, -100], [-100, 2, 1]])
    found = cross_entropies(values, labels)
    for row in range(2):
        for column in range(3):
            label = int(labels[row, column])
            numbers = values[row, column].tolist()
            expected = 0.0 if label < 0 else math.log(math.fsum(map(math.exp, numbers))) - numbers[label]
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-12)
    mean = mean_over(found, labels != -100)
    assert float(mean) == pytest.approx(float(F.cross_entropy(values.reshape(-1, 5), labels.reshape(-1))), rel=1e-12)


def test_the_relative_error_counts_only_what_counts() -> None:
    own, wanted = logits(5, 2, 3, 4), logits(6, 2, 3, 4)
    counted = torch.tensor([[True, True, False], [True, False, False]])
    wrong = size = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0)):
        for a, b in zip(own[row, column].tolist(), wanted[row, column].tolist(), strict=True):
            wrong, size = wrong + (a - b) ** 2, size + b**2
    assert float(relative_error(own, wanted, counted)) == pytest.approx(wrong / size, rel=1e-12)
    assert float(relative_error(own, wanted, None)) == pytest.approx(
        float(((own - wanted) ** 2).sum() / (wanted**2).sum()), rel=1e-12
    )


def test_the_mean_over_nothing_is_zero_with_gradients_of_zero() -> None:
    values = torch.ones(3, requires_grad=True)
    loss = mean_over(values, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_position_that_does_not_count_may_hold_anything() -> None:
    values = torch.tensor([1.0, torch.inf], requires_grad=True)
    loss = mean_over(values, torch.tensor([True, False]))
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]


def test_gradients_are_those_of_finite_differences() -> None:
    teacher = logits(7, 3, 6)
    values, classes = teacher.topk(2, dim=-1)
    rest = (teacher / 2).scatter(-1, classes, -torch.inf).logsumexp(-1)
    labels = torch.tensor([0, -100, 5])
    counted = torch.tensor([True, False, True])
    student = logits(8, 3, 6).requires_grad_()
    for loss in (
        lambda s: divergences(s, teacher, 2.0),
        lambda s: top_divergences(s, values, classes, rest, 2.0),
        lambda s: cross_entropies(s, labels),
        lambda s: relative_error(s, teacher, counted),
        lambda s: mean_over(divergences(s, teacher, 3.0), counted),
    ):
        assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    student, teacher = logits(9, 2, 500).to(dtype), logits(10, 2, 500).to(dtype)
    found = divergences(student, teacher, 2.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), divergences(student.double(), teacher.double(), 2.0), rtol=1e-5, atol=1e-6
    )

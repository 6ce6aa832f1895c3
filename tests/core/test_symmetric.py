"""Symmetric matrices of which a triangle is kept, and weights of which only the products count."""

from __future__ import annotations

import pytest
import torch

import prunekit as pk
from prunekit_plugins.calibration import symmetric
from prunekit_plugins.calibration.moments import Moments
from prunekit_plugins.calibration.statistics import SiteStatistics
from prunekit_plugins.calibration.symmetric import Symmetric
from prunekit_plugins.importance import reconstruction
from prunekit_plugins.importance.reconstruction import TINY, root, weighted


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "ROWS", 4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("width", [1, 4, 10])
def test_a_triangle_gives_the_whole_matrix(groups: int, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(groups, width, 6).double()
    whole = x @ x.transpose(1, 2)
    product = Symmetric.zeros(groups, width, torch.float64, whole.device)
    product.add_product(x, x.transpose(1, 2))
    for found in (Symmetric.of(whole, torch.float64), product, product.copy()):
        assert found.width == width
        torch.testing.assert_close(found.whole(torch.float64), whole)
        torch.testing.assert_close(found.diagonal, whole.diagonal(dim1=1, dim2=2))
        values = torch.randn(groups, width, 5).double()
        torch.testing.assert_close(found.times(values), whole @ values)
    assert found.whole(torch.float32).dtype is torch.float32


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_add_up(groups: int, dtype: torch.dtype) -> None:
    """In float32 they are added where they are; to float64 after they were made."""
    torch.manual_seed(0)
    found, expected = Symmetric.zeros(groups, 10, dtype, torch.device("cpu")), torch.zeros(groups, 10, 10)
    for _ in range(3):
        x = torch.randn(groups, 10, 6)
        found.add_product(x, x.transpose(1, 2))
        expected += x @ x.transpose(1, 2)
    apart = found.copy()
    apart.multiply(torch.zeros(groups))
    factors = torch.arange(groups).double() + 0.5
    found.multiply(factors)
    assert {block.dtype for block in found.blocks} == {dtype}
    torch.testing.assert_close(found.whole(torch.float32), expected * factors.float()[:, None, None])


def test_equal_ones_are_of_one_width_and_of_equal_values() -> None:
    x = torch.eye(10)[None]
    found, other = Symmetric.of(x, torch.float32), x.clone()
    assert found.equals(Symmetric.of(x, torch.float32))
    assert not found.equals(Symmetric.of(x[:, :9, :9], torch.float32))
    other[0, 9, 9] = 2
    assert not found.equals(Symmetric.of(other, torch.float32))


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("outputs", [5, 30])
def test_a_root_has_the_products_of_the_weight(monkeypatch: pytest.MonkeyPatch, outputs: int, dependent: bool) -> None:
    """Of more outputs than features it has as many rows as these, unless some of them follow from others."""
    monkeypatch.setattr(reconstruction, "ROWS", 7)
    torch.manual_seed(0)
    weight, factors = torch.randn(2, outputs, 8), torch.rand(2, outputs).double()
    if dependent:
        weight[:, :, 0] = 0
    wide = weight.double() * factors[:, :, None]
    found = root(weight, factors)
    assert found.dtype is torch.float64
    assert found.shape[1] == (outputs if dependent or outputs == 5 else 8)
    torch.testing.assert_close(found.transpose(1, 2) @ found, wide.transpose(1, 2) @ wide)
    plain = root(weight)
    torch.testing.assert_close(plain.transpose(1, 2) @ plain, weight.double().transpose(1, 2) @ weight.double())


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("outputs", [5, 30])
def test_a_weighted_weight_has_the_products_under_the_curvature(outputs: int, kept: bool) -> None:
    torch.manual_seed(0)
    slopes, weight = torch.randn(1, outputs, 40), torch.randn(1, outputs, 8)
    whole = slopes @ slopes.transpose(1, 2)
    site = pk.calibrate(torch.nn.Linear(8, outputs), [torch.randn(4, 8)]).sites["weight"].site
    moments = Moments(4, torch.zeros(1, 8).double(), torch.ones(1, 8).double())
    seen = SiteStatistics(site, moments, Symmetric.of(whole, torch.float32) if kept else whole)
    diagonal = whole.double().diagonal(dim1=1, dim2=2)
    mean = (whole.double() + diagonal.diag_embed()) / 2 + TINY * diagonal.mean() * torch.eye(outputs).double()
    found = weighted(weight, seen)
    assert found.shape[1] == min(outputs, 8)
    torch.testing.assert_close(found.transpose(1, 2) @ found, weight.double().transpose(1, 2) @ mean @ weight.double())

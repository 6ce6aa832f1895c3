"""What is zero where units were removed, and so which sums are exact: held against a model that is masked by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

Tensor = torch.Tensor
X = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """Queries and keys that share an axis, and values with one of their own; how they meet differs."""

    def __init__(self, feature: Callable[[Tensor], Tensor], meet: Callable[..., Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 7), nn.Linear(7, 4)
        self.feature, self.meet = feature, meet

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.meet(self.feature(self.q(x)), self.feature(self.k(x)), self.v(x)))


def compared(model: nn.Module, x: object = X) -> tuple[float, dict[str, tuple[str, ...]]]:
    """Cuts a model at random; returns how far it is from the one masked by hand, and what the report calls inexact."""
    model = model.double().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, x, importance="random")
    assert any(lead(name) == "q" for name in result.plan.kept), result.report
    args = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        expected, found = result.plan.mask(copy.deepcopy(original))(*args), model(*args)
    check = pk.check_exact(original, model, result.plan, x)
    assert check, str(check)
    assert set(check.inexact) == set(result.report.mixes)
    mixes = {lead(name): places for name, places in result.report.mixes.items()}
    return float((expected - found).abs().max() / expected.abs().max()), mixes


def lead(group: str) -> str:
    """The layer that a group is named after."""
    return group.partition("#")[0]


def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v)


def scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bnd,bmd,bmv->bnv", q, k, v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[:, :, None] * k[:, None]).sum(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.3)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.baddbmm(torch.zeros(2, 6, 6, dtype=q.dtype), q, k.transpose(1, 2)), v)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.linear(q[0], k[0]) @ v


def convolved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The keys are filters of kernel size one."""
    return F.conv1d(q.mT, k[0][:, :, None]).mT @ v


MEETINGS = [product, scores, by_einsum, by_hand, fused, batched, linear, convolved]

KEEP = {
    "nothing": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "squared relu": lambda x: F.relu(x) ** 2,
    "tanh": torch.tanh,
    "a factor": lambda x: x * 3 / 7,
    "hardswish": F.hardswish,
    "a gate of its own": lambda x: x * torch.sigmoid(x + 1),
    "normalised": lambda x: F.normalize(x, dim=1),
    "dropout": lambda x: F.dropout(x, 0.1, False),
    "turned and back": lambda x: x.flatten(0, 1).t().contiguous().t().unflatten(0, (2, 6)),
    "rotated": lambda x: torch.cat([-x[:, 3:], x[:, :3]], 1) * 0.3 + x * 0.7,
    "padded and cut": lambda x: F.pad(x, (0, 0, 1, 1))[:, 1:-1],
    "written into": lambda x: torch.zeros_like(x).copy_(x),
    "sine": torch.sin,
    "clamped below by less": lambda x: x.clamp(min=-0.5),
    "difference of softplus": lambda x: F.softplus(x) - F.softplus(-x),
}
SPOIL = {
    "elu plus one": lambda x: F.elu(x) + 1,
    "sigmoid": torch.sigmoid,
    "exponential": torch.exp,
    "softplus": F.softplus,
    "plus a number": lambda x: x + 0.1,
    "minus a number, in place": lambda x: (x * 1.0).sub_(0.1),
    "cosine": torch.cos,
    "random features": lambda x: torch.cat([x.cos()[:, :3], x.sin()[:, 3:]], 1),
    "hardsigmoid": F.hardsigmoid,
    "clamped from below": lambda x: x.clamp(min=0.1),
    "raised to zero": lambda x: x**0 + x,
    "filled where masked": lambda x: x.masked_fill(torch.arange(6)[:, None] > 3, 0.5),
    "chosen by a mask": lambda x: torch.where(torch.arange(6)[:, None] > 3, x, 0.5),
    "exponential of the negative": lambda x: (-x.square() / 2).exp(),
    "padded with ones": lambda x: F.pad(x, (0, 0, 1, 1), value=1.0)[:, :-2],
    "written over in part": lambda x: _written_over(x),
    "reciprocal": lambda x: 1 / (1 + x.abs()),
    "softmax over positions": lambda x: x.softmax(1),
    "less than": lambda x: (x < 0.5).to(x.dtype) + x,
}


def _written_over(x: Tensor) -> Tensor:
    copied = x * 1.0
    copied[:, 2:4] += 0.5
    return copied


@pytest.mark.slow
@pytest.mark.parametrize("meet", MEETINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", KEEP)
def test_sums_over_zeros_are_exact(name: str, meet: Callable[..., Tensor]) -> None:
    error, mixes = compared(Pair(KEEP[name], meet))
    assert error < 1e-12
    assert mixes.keys() <= ({"q", "k"} if name == "difference of softplus" else set())  # two numbers that cancel


@pytest.mark.slow
@pytest.mark.parametrize("meet", MEETINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", SPOIL)
def test_sums_over_others_are_listed(name: str, meet: Callable[..., Tensor]) -> None:
    error, mixes = compared(Pair(SPOIL[name], meet))
    assert error > 1e-6 or meet is fused  # softmax doesn't see what is added to all scores
    assert "q" in mixes
    assert all(" in " in place for place in mixes["q"])


class OneSided(Pair):
    """Only one of the two is zero at removed units, which is enough."""

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.meet(self.feature(self.q(x)), self.k(x), self.v(x)))


@pytest.mark.parametrize("meet", MEETINGS, ids=lambda f: f.__name__)
def test_one_operand_that_is_zero_is_enough(meet: Callable[..., Tensor]) -> None:
    error, mixes = compared(OneSided(SPOIL["elu plus one"], meet))
    assert error < 1e-12
    assert not mixes


class Reduces(nn.Module):
    """A reduction over the pruned axis of one tensor."""

    def __init__(self, feature: Callable[[Tensor], Tensor], reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(5, 8), nn.Linear(1, 4)
        self.feature, self.reduce = feature, reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.reduce(self.feature(self.q(x)))[..., None])


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "einsum": lambda x: torch.einsum("bnd->bn", x),
    "norm": lambda x: x.norm(dim=-1),
    "norm of order one": lambda x: torch.linalg.vector_norm(x, 1, -1),
    "largest magnitude": lambda x: torch.linalg.vector_norm(x, math.inf, -1),
    "square": lambda x: (x * x).sum(-1),
    "count": lambda x: torch.count_nonzero(x, -1).to(x.dtype),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(-1),
    "product": lambda x: x.prod(-1),
    "logarithm of a sum": lambda x: x.logsumexp(-1),
    "deviation": lambda x: x.std(-1),
    "variance": lambda x: x.var(-1, unbiased=False),
    "softmax": lambda x: (x.softmax(-1) * x).sum(-1),
    "smallest magnitude": lambda x: torch.linalg.vector_norm(x, -math.inf, -1),
    "mean square": lambda x: x.square().mean(-1),
    "largest": lambda x: (x - 5).amax(-1),
}


@pytest.mark.parametrize("name", SUMS)
def test_reductions_to_which_zeros_add_nothing(name: str) -> None:
    error, mixes = compared(Reduces(F.relu, SUMS[name]))
    assert error < 1e-12
    assert not mixes
    error, mixes = compared(Reduces(lambda x: x.sigmoid() + 1.5, SUMS[name]))
    assert list(mixes) == ["q"]
    assert error > 1e-6 or name == "largest magnitude"


@pytest.mark.parametrize("name", OTHERS)
def test_reductions_that_depend_on_the_number_of_units(name: str) -> None:
    _, mixes = compared(Reduces(F.relu, OTHERS[name]))
    assert list(mixes) == ["q"]


class Distance(nn.Module):
    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.o, self.measure = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(6, 4), measure

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.measure(self.q(x), self.k(x)))


@pytest.mark.parametrize(
    "measure",
    [
        lambda q, k: torch.cdist(q, k),
        lambda q, k: torch.cdist(q, k.sigmoid()),
        lambda q, k: F.cosine_similarity(q[:, :, None], k[:, None], -1),
        lambda q, k: F.cosine_similarity(q[:, :, None].sigmoid(), k[:, None].sigmoid(), -1),
        lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT,
        lambda q, k: F.normalize(q.exp(), dim=-1) @ F.normalize(k.exp(), dim=-1).mT,
        lambda q, k: F.pairwise_distance(q[:, :, None], k[:, None]),
    ],
)
def test_distances_and_similarities_are_exact_or_listed(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    error, mixes = compared(Distance(measure))
    assert error < 1e-9 or mixes


class Biased(nn.Module):
    """A bias is added behind the layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(5, 8, bias=False), nn.Linear(5, 8, bias=False), nn.Linear(6, 4)
        if kind == "parameter":
            self.shift = nn.Parameter(torch.randn(8))
        elif kind == "one for all":
            self.shift = nn.Parameter(torch.randn(1))
        else:
            self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.o((self.q(x) + self.shift) @ (self.k(x) + self.shift).mT)


@pytest.mark.parametrize(("kind", "exact"), [("parameter", True), ("one for all", False), ("buffer", False)])
def test_a_bias_counts_if_it_isn_t_zeroed_with_the_unit(kind: str, exact: bool) -> None:
    error, mixes = compared(Biased(kind))
    assert (error < 1e-12) == exact == (not mixes)


class Normed(nn.Module):
    """A norm stands between a layer and the product."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.norm = nn.Conv1d(5, 8, 1), nn.Conv1d(5, 8, 1), norm
        self.o = nn.Linear(6, 4)
        for tensor in self.norm.buffers():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.norm(self.q(x.mT)).mT @ self.norm(self.k(x.mT)))


@pytest.mark.parametrize(
    ("norm", "exact"),
    [
        (nn.BatchNorm1d(8), True),
        (nn.BatchNorm1d(8, affine=False), False),
        (nn.InstanceNorm1d(8), True),
        (nn.InstanceNorm1d(8, affine=True), True),
        (nn.Identity(), True),
    ],
    ids=repr,
)
def test_norms_of_channels_keep_zeros_where_their_bias_goes_along(norm: nn.Module, exact: bool) -> None:
    error, mixes = compared(Normed(norm))
    assert (error < 1e-12) == exact == (not mixes)


class Chunked(nn.Module):
    """Values are tied to queries and keys by ``chunk``, and are zero; queries and keys aren't."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(5, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).chunk(3, -1)
        return self.o(F.scaled_dot_product_attention(q.sigmoid(), k.sigmoid(), v, scale=0.5))


def test_values_that_are_zero_don_t_make_scores_exact() -> None:
    _, mixes = compared(Chunked())
    assert "q" in mixes


class Deep(nn.Module):
    """As long a way back as there may be."""

    def __init__(self, steps: int, last: float) -> None:
        super().__init__()
        self.q, self.k, self.o, self.steps, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(6, 4), steps, last

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x) + self.last, self.k(x) + self.last
        for _ in range(self.steps):
            q = q.tanh() + q * 0.5
        return self.o(q @ k.mT)


def test_the_way_back_may_be_long() -> None:
    for last, exact in ((0.0, True), (0.1, False)):
        (group,) = pk.DependencyGraph().build_dependency(Deep(800, last), X.float()).analysis.groups.values()
        assert (not group.mixes) == exact


class Standardised(nn.Conv1d):
    """Weights are standardised over the input channels and the kernel, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2], keepdim=True, unbiased=False)
        return F.conv1d(x, (self.weight - mean) / (variance + 1e-6).sqrt(), self.bias)


class StandardisedByNorm(nn.Conv1d):
    """The same by a batch norm over the filters."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv1d(x, weight, self.bias, groups=self.groups)


class Standard(nn.Module):
    def __init__(self, conv: type[nn.Conv1d], feature: Callable[[Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.q, self.feature = conv(5, 8, 3), feature
        self.next, self.o = conv(8, 8, 3, groups=groups), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.feature(self.next(self.feature(self.q(x.mT)))).mean(-1))


@pytest.mark.parametrize("conv", [Standardised, StandardisedByNorm])
@pytest.mark.parametrize("feature", [F.relu, torch.sigmoid, F.softplus])
def test_standardised_weights_depend_on_the_number_of_input_channels(
    conv: type[nn.Conv1d], feature: Callable[[Tensor], Tensor]
) -> None:
    _, mixes = compared(Standard(conv, feature))
    assert list(mixes) == ["q"]  # removed filters have statistics of their own


def test_standardised_weights_in_groups() -> None:
    model = Standard(StandardisedByNorm, torch.sigmoid, groups=4)
    _, mixes = compared(model)
    assert list(mixes) == ["q"]


class WritesToAView(nn.Module):
    """Writes to a tensor what it reads from a view of it, and to the view what it reads from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.ones(1, 1).expand(3, 4)
        whole = self.first(x * wide)
        view = whole.view(whole.shape)
        view.add_(whole)
        whole.mul_(view)
        return self.last(view)


def test_tensors_that_are_written_from_each_other_share_one_memory() -> None:
    torch.manual_seed(0)
    model, x = WritesToAView(), torch.randn(3, 4)
    shares = pk.BasePruner(model, x).graph.analysis.recordings[0].trace.shares
    assert shares
    assert all(source < view for view, source in shares.items())  # an end to every chain
    original = copy.deepcopy(model)
    result = pk.prune(model, x, verify="always")
    assert result.report.pruned == {"first#stream": (8, 4)}
    kept = list(result.plan.cuts[0].kept)
    hidden = 2 * original.first(x)[:, kept]
    expected = (hidden * hidden) @ original.last.weight[:, kept].T + original.last.bias
    torch.testing.assert_close(model(x), expected)

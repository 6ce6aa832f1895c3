"""Constants that follow a size: made up for in the weights where that is possible, reported where it isn't."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

Scores = Callable[["Attention", torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """One layer of attention whose softmax arguments are computed by a function that uses the head dim."""

    def __init__(self, scores: Scores, heads: int = 2, dim: int = 8) -> None:
        super().__init__()
        self.scores, self.heads, self.dim = scores, heads, dim
        self.embed = nn.Linear(5, 6)
        self.q, self.k, self.v = (nn.Linear(6, heads * dim) for _ in range(3))
        self.qkv = nn.Linear(6, 3 * heads * dim)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.out = nn.Linear(heads * dim, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = (
            layer(x).view(len(x), -1, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        weights = self.scores(self, q, k).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(len(x), -1, self.heads * self.dim))


def root(attention: Attention) -> float:
    return float(attention.dim**0.5)


X = torch.randn(2, 4, 5)
ORDER = torch.tensor([0, 2, 1, 3])
FUTURE = torch.ones(4, 4).triu(1).bool()


def disentangled(q: torch.Tensor, k: torch.Tensor, p: torch.Tensor, dim: torch.Tensor) -> torch.Tensor:
    """DeBERTa: queries meet keys and positions, each divided; the queries' rows make up for both."""
    return q @ (k / dim.sqrt()).mT + q @ (p / dim.sqrt()).mT


MADE_UP_FOR: dict[str, Scores] = {
    "queries times": lambda a, q, k: (q * root(a) ** -1) @ k.mT,
    "queries over": lambda a, q, k: (q / root(a)) @ k.mT,
    "keys over": lambda a, q, k: q @ (k / root(a)).mT,
    "scores over": lambda a, q, k: (q @ k.mT) / root(a),
    "scores times": lambda a, q, k: torch.matmul(q, k.transpose(-2, -1)) * root(a) ** -1,
    "after a gain": lambda a, q, k: ((q * a.gain) @ k.mT) / root(a),
    "after halves are exchanged": lambda a, q, k: (torch.cat([q[:, :1], q[:, 1:]], 1).neg() / root(a)) @ -k.mT,
    "after conversions": lambda a, q, k: (q.to(torch.float32).to(torch.float64) / root(a)) @ k.to(k.device).mT,
    "as a tensor": lambda a, q, k: (q @ k.mT) / torch.sqrt(torch.tensor(q.shape[-1])),
    "as a tensor of a float": lambda a, q, k: (q @ k.mT) / torch.tensor(root(a)),
    "as a tensor, converted": lambda a, q, k: (q @ k.mT) / torch.tensor(q.shape[-1] * 3.0).sqrt().to(q.dtype) * 3**0.5,
    "as a filled tensor": lambda a, q, k: (q @ k.mT) * torch.full((), q.shape[-1]).rsqrt(),
    "keys, as queries are shifted after a square": lambda a, q, k: ((q * q + 1) @ k.mT) / root(a),
    "queries shifted": lambda a, q, k: ((q + 1) @ k.mT) / root(a),
    "queries read twice": lambda a, q, k: (q / root(a)) @ k.mT + 0 * q.sum(),
    "picked": lambda a, q, k: (q @ k.mT).gather(-1, torch.arange(4).flip(0).expand(len(q), a.heads, 4, 4)) / root(a),
    "disentangled": lambda a, q, k: disentangled(q, k, a.gain * k.flip(2), torch.tensor(float(a.dim))),
    "after a maximum": lambda a, q, k: (q.unflatten(2, (2, 2)).amax(2) @ k.mT).repeat_interleave(2, 2) / root(a),
    "after an average": lambda a, q, k: F.avg_pool1d(q.flatten(0, 1).mT, 1).relu().mT.view_as(q) @ k.mT / root(a),
    "converted like another": lambda a, q, k: (q.type_as(k) / root(a)) @ k.mT,
    "after a sum": lambda a, q, k: ((q + 2 * q) @ k.mT) / root(a),
    "multiplied and summed": lambda a, q, k: (q[:, :, :, None] * k[:, :, None]).sum(-1) / root(a),
    "multiplied, with a factor, and summed": lambda a, q, k: ((q / root(a))[:, :, :, None] * k[:, :, None]).sum(-1),
    "products of picked rows": lambda a, q, k: (
        (q[:, :, ORDER][:, :, :, None] * k.index_select(2, ORDER)[:, :, None]).sum(-1) / root(a)
    ),
    "a scalar product": lambda a, q, k: torch.linalg.vecdot(q[:, :, :, None], k[:, :, None]) / root(a),
    "einsum": lambda a, q, k: torch.einsum("bhqd,bhkd->bhqk", q, k) / root(a),
    "half at each operand": lambda a, q, k: (q * root(a) ** -0.5) @ (k / root(a) ** 0.5).mT,
    "in place": lambda a, q, k: (q @ k.mT).div_(root(a)),
    "queries in place": lambda a, q, k: q.mul_(root(a) ** -1) @ k.mT,
    "in both parts of a join": lambda a, q, k: torch.cat([q[:, :, :2] / root(a), q[:, :, 2:] / root(a)], 2) @ k.mT,
    "a learned factor": lambda a, q, k: (q * (F.softplus(a.gain) * (1.44 / root(a)))) @ k.mT,
    "a learned temperature": lambda a, q, k: (q @ k.mT) * (a.gain.exp() / root(a)),
    "before a mask": lambda a, q, k: (q @ k.mT).masked_fill(FUTURE, -torch.inf) / root(a),
    "before the least number": lambda a, q, k: (q @ k.mT).masked_fill(FUTURE, torch.finfo(q.dtype).min) / root(a),
    "before a choice": lambda a, q, k: torch.where(FUTURE, torch.tensor(-torch.inf, dtype=q.dtype), q @ k.mT) / root(a),
    "after a bias": lambda a, q, k: (q @ k.mT) / root(a) + FUTURE * 0.3,
    "an added product": lambda a, q, k: torch.baddbmm(
        q.new_zeros(1, 4, 4), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=root(a) ** -1
    ).unflatten(0, q.shape[:2]),
    "an added product onto nothing": lambda a, q, k: torch.baddbmm(
        q.new_empty(1, 4, 4), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=root(a) ** -1
    ).unflatten(0, q.shape[:2]),
    "as a factor of a sum": lambda a, q, k: torch.add(FUTURE.to(q.dtype), q @ k.mT, alpha=root(a) ** -1),
    "positions by other queries": lambda a, q, k: (q @ k.mT + q @ a.q.weight.new_ones(4, q.shape[-1]).mT) / root(a),
    "a cap": lambda a, q, k: 50 * torch.tanh((q @ k.mT) / root(a) / 50),
}

REPORTED: dict[str, tuple[Scores, str]] = {
    "as exponents": (lambda a, q, k: (q.exp() @ k.exp().mT) / root(a), "its operand comes from aten::exp"),
    "with constants": (lambda a, q, k: ((q + 1) @ (k + 1).mT) / root(a), "adds something that is not scaled"),
    "as a tensor that is added": (lambda a, q, k: q @ k.mT + torch.tensor(root(a)), "it is no plain factor"),
    "read twice": (lambda a, q, k: (q / root(a)) @ k.mT + 0 * (q.sum() + k.sum()), "reads the same elements"),
    "read twice by one product": (lambda a, q, k: (q @ q.mT).matmul(k @ k.mT) / root(a) + q.sum() + k.sum(), "reads"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE_UP_FOR)
def test_the_temperature_stays(name: str) -> None:
    torch.manual_seed(0)
    model = Attention(MADE_UP_FOR[name]).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert model.dim == 4
    assert result.plan.rescales
    assert [rescale.factor for rescale in result.plan.rescales] == pytest.approx([0.5**0.5] * len(result.plan.rescales))
    assert len(result.plan.rescales) == 2  # weight and bias of one layer
    assert not result.plan.notes
    lines = str(result).split("rescaled, because a constant of the program follows a size:\n")[1].splitlines()[:2]
    assert lines == [f"  {rescale.parameter}: rows x 0.7071" for rescale in result.plan.rescales]
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < (1e-6 if name == "after conversions" else 1e-12), str(check)


ROOTS: dict[str, tuple[Scores, float]] = {
    "queries under a square": (lambda a, q, k: ((q * q) @ k.mT) / root(a), 0.5**0.25),
    "queries and keys under squares": (lambda a, q, k: (q.square() @ (k * k).mT) / root(a), 0.5**0.25),
    "queries under a root": (lambda a, q, k: (q.abs().sqrt() @ (k + 1).mT) / root(a), 0.5),
    "keys as divisors": (lambda a, q, k: ((1 / (q.abs() + 1)) @ (1 / k).mT) / root(a), 2**0.5),
    "distances": (lambda a, q, k: (q[:, :, :, None] - k[:, :, None]).pow(2).sum(-1) / root(a), 0.5**0.25),
}


@pytest.mark.parametrize("name", ROOTS)
def test_powers_take_roots(name: str) -> None:
    torch.manual_seed(0)
    scores, factor = ROOTS[name]
    model = Attention(scores).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert model.dim == 4
    assert not result.plan.notes
    factors = {rescale.factor for rescale in result.plan.rescales}
    assert len(factors) == 1
    assert factors.pop() == pytest.approx(factor)
    if name != "keys as divisors":  # a removed key is divided by zero in the original
        assert pk.check_exact(original, model, result.plan, x).error < 1e-12


@pytest.mark.parametrize("explicit", [False, True])
def test_the_scale_of_fused_attention_stays(explicit: bool) -> None:
    class Fused(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            q, k, v = (
                layer(x).view(len(x), -1, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v, scale=root(self) ** -1 if explicit else None)
            return self.out(y.transpose(1, 2).reshape(len(x), -1, self.heads * self.dim))

    torch.manual_seed(0)
    model = Fused(MADE_UP_FOR["scores over"]).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert model.dim == 4
    assert not result.plan.notes
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-12, str(check)


@pytest.mark.parametrize("name", REPORTED)
def test_what_can_not_be_made_up_for_is_not_cut(name: str) -> None:
    """The units that the constant follows stay: queries' and, as one attribute holds the sizes of both, values'."""
    torch.manual_seed(0)
    scores, why = REPORTED[name]
    model, x = Attention(scores).eval().double(), X.double()
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert not result.plan.rescales
    assert model.dim == 8
    assert set(result.report.pruned) == {"embed"}
    said = "follows a size and changes by a factor of"
    assert all(said in result.report.left[f"{x}#head_dim"] and why in result.report.left[f"{x}#head_dim"] for x in "qv")
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-12, str(check)


def test_a_constant_of_units_whose_number_counts_anyway_is_noted() -> None:
    """A norm by hand: what it divides by depends on how many units there are, as in any norm."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).sigmoid()
            return self.last((F.normalize(x, dim=-1) * x.shape[-1] ** 0.5).tanh())

    model = Normed().eval()
    result = pk.prune(model, X, verify="always")
    assert model.first.out_features == 8
    constant, verified = result.report.notes
    change = "follows a size and changes by a factor of 0.7071 (4 became 2.82843): "
    assert constant.startswith(f"a constant of aten::mul.Tensor in the model {change}")
    assert verified == (
        "not verified: a constant of aten::mul.Tensor in the model changes, so that the two compute something else"
    )
    assert "first" in result.report.mixes


def test_written_down_tensors_that_follow_a_size_stop_the_cut() -> None:
    scores: Scores = lambda a, q, k: q @ k.mT / torch.tensor([a.heads, q.shape[-1]])[1]  # noqa: E731
    result = pk.prune(Attention(scores).eval(), X)
    assert any("fill_value is [2, 4], recorded was [2, 8]" in why for why in result.report.left.values())


def test_keys_of_fused_attention_are_scaled_where_queries_are_read_elsewhere() -> None:
    """SAM: the queries make a bias of the scores as well."""

    class Biased(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            q, k, v = (
                layer(x).view(len(x), -1, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            bias = (q * self.gain).tanh().sum(-1, keepdim=True).expand(-1, -1, -1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return self.out(y.transpose(1, 2).reshape(len(x), -1, self.heads * self.dim))

    torch.manual_seed(0)
    model = Biased(MADE_UP_FOR["scores over"]).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert {rescale.parameter for rescale in result.plan.rescales} == {"k.weight", "k.bias"}
    assert pk.check_exact(original, model, result.plan, x).error < 1e-12


def test_a_norm_after_the_queries_is_scaled() -> None:
    """iFormer: queries are made by a convolution and a BatchNorm, whose weights and biases answer for the scale."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.norm, self.k, self.v = (
                nn.Conv1d(5, 8, 1),
                nn.BatchNorm1d(8),
                nn.Conv1d(5, 8, 1),
                nn.Linear(5, 6),
            )
            self.out = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = self.norm(self.q(x.mT)), self.k(x.mT)
            return self.out(F.scaled_dot_product_attention(q.mT, k.mT, self.v(x)))

    torch.manual_seed(0)
    model = Normed().double()
    model(X.double())
    original = copy.deepcopy(model.eval())
    result = pk.prune(model, X.double())
    assert {rescale.parameter for rescale in result.plan.rescales} == {"norm.weight", "norm.bias"}
    assert pk.check_exact(original, model, result.plan, X.double()).error < 1e-12


def test_part_of_a_product_with_a_turned_parameter_is_scaled() -> None:
    """Queries, keys and values are one product with ``weight.T``."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(24, 5)), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (x @ self.weight.T).view(*x.shape[:2], 3, -1).unbind(2)
            return self.out(F.scaled_dot_product_attention(q, k, v))

    torch.manual_seed(0)
    model = Turned().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert [(r.parameter, r.rows) for r in result.plan.rescales] == [("weight", ((0, 8),))]
    assert pk.check_exact(original, model, result.plan, x).error < 1e-12


class Selves(nn.Module):
    """Queries and keys are made by the same rows: both take the root of the factor."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.rows, self.values, self.out = fused, nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, v = self.rows(x), self.values(x)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, q, q))
        return self.out((q @ q.mT / torch.tensor(q.shape[-1]).sqrt()).softmax(-1) @ v)


def test_rows_that_make_both_operands_take_the_root() -> None:
    torch.manual_seed(0)
    model = Selves(fused=False).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert {rescale.parameter: rescale.factor for rescale in result.plan.rescales} == pytest.approx(
        {"rows.weight": 0.5**0.25, "rows.bias": 0.5**0.25}
    )
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-12, str(check)


def test_queries_that_are_values_as_well_are_made_up_for_behind_them() -> None:
    """The values are scaled along; the layer that reads them takes it back."""
    torch.manual_seed(0)
    model = Selves(fused=True).eval().double()
    original, x = copy.deepcopy(model), X.double()
    result = pk.prune(model, x)
    assert {rescale.parameter: rescale.factor for rescale in result.plan.rescales} == pytest.approx(
        {"rows.weight": 0.5**0.25, "rows.bias": 0.5**0.25, "out.weight": 0.5**-0.25}
    )
    assert pk.check_exact(original, model, result.plan, x).error < 1e-12


def test_queries_that_are_values_of_a_nonlinear_function_are_not_scaled() -> None:
    class Nonlinear(Selves):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.rows(x)
            return self.out(F.scaled_dot_product_attention(q, q, q).tanh())

    with pytest.raises(pk.NothingToPruneError, match="reads it more than once"):
        pk.prune(Nonlinear(fused=True).eval(), X)


def test_one_constant_at_two_pictures_of_one_batch() -> None:
    """RAFT: two pictures go through one encoder as one batch, and their features are multiplied with each other."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.out = nn.Conv2d(3, 16, 1), nn.Linear(4, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            a, b = self.encoder(torch.cat([left, right])).flatten(2).chunk(2)
            return self.out((a.mT @ b) / torch.sqrt(torch.tensor(a.shape[1])))

    torch.manual_seed(0)
    model, x = Pairs().eval().double(), tuple(torch.randn(2, 1, 3, 2, 2, dtype=torch.float64))
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert [rescale.factor for rescale in result.plan.rescales] == pytest.approx([0.5**0.25] * 2)
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-12, str(check)

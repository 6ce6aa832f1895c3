"""Constants that follow a size, followed through whole programs: shared layers, memory, means by hand, what is told."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Use = Callable[["Layers", torch.Tensor], torch.Tensor]


class Layers(nn.Module):
    """Some layers, and a function of the first one's output that uses them."""

    def __init__(self, use: Use, width: int = 12) -> None:
        super().__init__()
        self.use = use
        self.first, self.inner, self.last, self.of_one = (
            nn.Linear(5, width),
            nn.Linear(width, width),
            nn.Linear(width, 3),
            nn.Linear(1, 3),
        )
        self.gain, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.table = nn.Embedding(9, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self, self.first(x))


def masked(model: nn.Module, plan: pk.Plan) -> nn.Module:
    """A copy with zeros where units were removed, from the plan's positions alone."""
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    for cut in plan.parameters:
        for dim, kept in plan.positions(cut).items():
            mask = torch.zeros(cut.shape[dim], dtype=torch.float64)
            mask[kept] = 1
            named[cut.parameter].data.mul_(mask.reshape([-1 if d == dim else 1 for d in range(len(cut.shape))]))
    return model


def pruned(use: Use) -> tuple[nn.Module, nn.Module, pk.PruneResult]:
    torch.manual_seed(0)
    model = Layers(use).double().eval()
    original = copy.deepcopy(model)
    return original, model, pk.prune(model, X, ratio=0.5)


def root(x: torch.Tensor) -> float:
    return math.sqrt(x.shape[-1])


EXACT: dict[str, tuple[Use, set[str]]] = {
    "part of a residual sum": (lambda m, h: m.last((h + m.inner(h) / root(h)).tanh()), {"inner"}),
    "an activation that scales": (lambda m, h: m.last((h + m.inner(h).relu() / root(h)).tanh()), {"inner"}),
    "an embedding": (lambda m, h: m.last((m.table(torch.arange(4)) * root(h) + h).tanh()), {"table"}),
    "the model's outputs": (lambda m, h: m.last(h) / root(h), {"last"}),
    "an activation's operand": (lambda m, h: m.last(F.gelu(h / root(h))), {"first"}),
    "what a layer reads": (lambda m, h: m.last(h.tanh() / root(h)), {"last"}),
    "a factor that is taken back": (lambda m, h: m.last((h / root(h)).relu() * root(h)), set()),
    "a sum over the root of its size": (
        lambda m, h: m.of_one((h.relu().sum(-1, keepdim=True) / root(h)).sin()),
        {"first"},
    ),
    "a direction with a gain": (lambda m, h: m.last((F.normalize(h, dim=-1) * root(h) * m.gain).tanh()), {"gain"}),
}


@pytest.mark.parametrize("name", EXACT)
def test_rows_make_up_for_a_constant(name: str) -> None:
    use, owners = EXACT[name]
    original, model, result = pruned(use)
    assert result.plan.cuts
    assert not result.plan.notes
    assert {rescale.parameter.split(".")[0] for rescale in result.plan.rescales} == owners
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)
    assert pk.check_exact(original, model, result.plan, X).error < 1e-12


TOLD: dict[str, tuple[Use, str]] = {
    "an embedding that is tied to the outputs": (
        lambda m, h: F.linear((m.table(torch.arange(4)) * root(h) + h).tanh(), m.table.weight),
        "it is an output of the model",
    ),
    "behind an activation": (
        lambda m, h: m.last((h + F.gelu(m.inner(h)) / root(h)).tanh()),
        "its operand comes from aten::gelu",
    ),
    "a direction": (
        lambda m, h: m.last((F.normalize(h, dim=-1) * root(h)).tanh()),
        "aten::clamp_min reads the same elements",
    ),
    "a summand": (lambda m, h: m.last(h) + 1 / root(h), "argument other is"),
    "an exponent": (lambda m, h: m.last(h.abs() ** (1 / root(h))), "argument exponent is"),
    "frequencies": (
        lambda m, h: m.last(h) + torch.sin(torch.arange(3) * 10000 ** (-2 / h.shape[-1])),
        "not by one factor",
    ),
    "a rounded quotient": (
        lambda m, h: m.last(torch.div(9 * h, root(h), rounding_mode="floor")),
        "argument other is",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_no_row_makes_up_for_gives_its_units_back(name: str) -> None:
    use, why = TOLD[name]
    with pytest.raises(pk.NothingToPruneError, match=re.escape(why)):
        pruned(use)


def test_a_norm_without_parameters_hands_nothing_on() -> None:
    """The factor before it is made up for in front, and what depends on nothing but a norm is left alone."""
    original, model, result = pruned(
        lambda m, h: m.last(F.layer_norm(h, h.shape[-1:]) / root(h)) + m.last(F.layer_norm(h / root(h), h.shape[-1:]))
    )
    assert {rescale.parameter for rescale in result.plan.rescales} <= {"first.weight", "first.bias", "last.weight"}
    assert bool(result.plan.notes) or pk.check_exact(original, model, result.plan, X)


def mean(h: torch.Tensor) -> torch.Tensor:
    return h.sum(-1, keepdim=True) / h.shape[-1]


def layer_norm(m: Layers, h: torch.Tensor) -> torch.Tensor:
    centred = h - mean(h)
    return centred * torch.rsqrt(mean(centred**2) + 1e-5) * m.gain + m.shift


BY_HAND: dict[str, tuple[Use, Use]] = {
    "a mean": (lambda m, h: m.of_one(mean(h.relu()).sin()), lambda m, h: m.of_one(h.relu().mean(-1, True).sin())),
    "a mean by a factor": (
        lambda m, h: m.of_one((h.relu().sum(-1, True) * (1 / h.shape[-1])).sin()),
        lambda m, h: m.of_one(h.relu().mean(-1, True).sin()),
    ),
    "a mean by a tensor": (
        lambda m, h: m.of_one((h.relu().sum(-1, True) / torch.tensor(h.shape[-1])).sin()),
        lambda m, h: m.of_one(h.relu().mean(-1, True).sin()),
    ),
    "a mean, divided first": (
        lambda m, h: m.of_one((h.relu() / h.shape[-1]).sum(-1, True).sin()),
        lambda m, h: m.of_one(h.relu().mean(-1, True).sin()),
    ),
    "a mean by einsum": (
        lambda m, h: m.of_one((torch.einsum("btc->bt", h.relu()) / h.shape[-1])[..., None].sin()),
        lambda m, h: m.of_one(h.relu().mean(-1, True).sin()),
    ),
    "layer norm": (
        lambda m, h: m.last(layer_norm(m, h)),
        lambda m, h: m.last(F.layer_norm(h, h.shape[-1:], m.gain, m.shift)),
    ),
    "an unbiased variance": (
        lambda m, h: m.of_one((((h - mean(h)) ** 2).sum(-1, True) / (h.shape[-1] - 1)).sin()),
        lambda m, h: m.of_one(h.var(-1, keepdim=True).sin()),
    ),
    "rms norm of squares": (
        lambda m, h: m.last(h * torch.rsqrt(mean(h.pow(2)) + 1e-6) * m.gain),
        lambda m, h: m.last(F.rms_norm(h, h.shape[-1:], m.gain, 1e-6)),
    ),
    "rms norm of a norm": (
        lambda m, h: m.last(h / (h.norm(dim=-1, keepdim=True) / root(h)) * m.gain),
        lambda m, h: m.last(F.rms_norm(h, h.shape[-1:], m.gain, 0.0)),
    ),
    "the root of a sum over a root": (
        lambda m, h: m.of_one((h.square().sum(-1, True).sqrt() / root(h)).sin()),
        lambda m, h: m.of_one(h.square().mean(-1, True).sqrt().sin()),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sums_over_their_number_are_means_over_what_is_left(name: str) -> None:
    """The same as the operation of PyTorch: the same cut, the same outputs, the same verdict."""
    by_hand, operation = BY_HAND[name]
    original, model, result = pruned(by_hand)
    _, twin, expected = pruned(operation)
    assert result.plan.kept == expected.plan.kept
    assert not result.plan.rescales
    assert all("a mean over those that are left" in note for note in result.plan.notes)
    assert result.plan.notes
    assert result.report.mixes.keys() == expected.report.mixes.keys() != set()
    torch.testing.assert_close(model(X), twin(X), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(X), masked(original, result.plan)(X))
    check = pk.check_exact(original, model, result.plan, X)
    assert check.error < 1e-12, str(check)


def test_a_scalar_product_over_its_size_is_no_mean() -> None:
    """Scores over ``d``, not its root: they are made up for like any other temperature."""
    original, model, result = pruned(lambda m, h: m.of_one(((h * m.inner(h)).sum(-1, True) / h.shape[-1]).sin()))
    assert result.plan.rescales
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, scaled: bool = True) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.mT / math.sqrt(self.dim) if scaled else q @ k.mT
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Shared(nn.Module):
    """One layer of attention, called several times."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.attention, self.last = nn.Linear(5, 16), Attention(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "depends on values" and x.sum().item() > 1e9:
            return x
        x = self.first(x)
        if self.how == "chunks":
            x = torch.cat([self.attention(x[:, :2]), self.attention(x[:, 2:])], 1)
        elif self.how == "otherwise":
            x = self.attention(x) + self.attention(x, scaled=False)
        else:
            for _ in range(3):
                x = x + self.attention(x)
        return self.last(x)


@pytest.mark.parametrize("how", ["chunks", "recurrent", "depends on values"])
def test_all_calls_of_a_layer_agree_on_its_rows(how: str) -> None:
    torch.manual_seed(0)
    model = Shared(how).double().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, ratio=0.5)
    assert model.attention.dim == 4
    assert {r.parameter: r.factor for r in result.plan.rescales} == pytest.approx(
        {"attention.q.weight": 0.5**0.5, "attention.q.bias": 0.5**0.5}
    )
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)


def test_calls_of_a_layer_that_disagree_are_told() -> None:
    torch.manual_seed(0)
    model = Shared("otherwise").double().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, ratio=0.5)
    assert model.attention.dim == 8
    assert not result.plan.rescales
    assert any("aten::softmax.int reads the same elements" in why for why in result.report.left.values())
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(
    "scale",
    [
        lambda q: torch.as_tensor(q.size(-1), dtype=q.dtype).sqrt(),
        lambda q: torch.tensor(q.shape[-1]).to(q.device).sqrt(),
        lambda q: torch.full((), q.shape[-1] ** 0.5, dtype=q.dtype),
        lambda q: torch.tensor(float(q.shape[-1])).to("cpu", q.dtype).pow(0.5),
    ],
)
def test_constants_made_as_tensors_in_programs_on_fake_and_on_real_tensors(
    values: bool, scale: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    def use(m: Layers, h: torch.Tensor) -> torch.Tensor:
        if values and h.isnan().any():
            return m.last(h)
        return m.last((h @ m.inner(h).mT / scale(h)).softmax(-1) @ h)

    original, model, result = pruned(use)
    assert not [note for note in result.report.notes if "constant" in note]
    assert {rescale.parameter for rescale in result.plan.rescales} == {"inner.weight", "inner.bias"}
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)


class Views(nn.Module):
    """Queries are scaled in place, in memory that keys and values lie in, too."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again = again
        self.qkv, self.out = nn.Linear(5, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.qkv(x)
        size = whole.shape[-1] // 3
        q, k, v = whole[..., :size], whole[..., size : 2 * size], whole[..., 2 * size :]
        q.mul_(q.shape[-1] ** -0.5)
        mixed = self.out((q @ k.mT).softmax(-1) @ v)
        return mixed + whole.exp().sum() if self.again else mixed


def test_what_is_scaled_in_place_beside_other_views() -> None:
    torch.manual_seed(0)
    model = Views(again=False).double()
    original = copy.deepcopy(model)
    result = pk.prune(model, X, ratio=0.5)
    assert [(r.parameter, r.rows) for r in result.plan.rescales] == [("qkv.weight", ((0, 8),)), ("qkv.bias", ((0, 8),))]
    torch.testing.assert_close(model(X), masked(original, result.plan)(X), rtol=1e-12, atol=1e-12)


def test_what_is_scaled_in_place_and_read_through_another_view_is_told() -> None:
    torch.manual_seed(0)
    with pytest.raises(pk.NothingToPruneError, match="writes into memory that is read elsewhere"):
        pk.prune(Views(again=True).double(), X, ratio=0.5)

"""Reductions, orders, losses and matrix functions."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.productions.book import Book

BOOK = Book("reductions")
REDUCED = (
    "{v}.sum({d}, keepdim={k})",
    "{v}.mean({d}, keepdim={k})",
    "{v}.amax({d}, {k})",
    "{v}.amin({d}, {k})",
    "{v}.std({d}, keepdim={k})",
    "{v}.var({d}, keepdim={k})",
    "{v}.norm(2, {d}, {k})",
    "{v}.logsumexp({d}, {k})",
    "{v}.max({d}, {k}).values",
    "{v}.min({d}, {k})[0]",
    "{v}.median({d}, {k})[0]",
    "torch.nansum({v}, {d}, {k})",
    "torch.nanmean({v}, {d}, {k})",
    "{v}.tanh().prod({d}, {k})",
    "torch.var_mean({v}, {d}, keepdim={k})[0]",
    "torch.std_mean({v}, {d}, keepdim={k})[1]",
    "torch.linalg.vector_norm({v}, 2.0, {d}, {k})",
    "({v} > 0.0).sum({d}, {k}).double()",
    "({v} > 0.0).any({d}, {k}).double()",
    "({v} > -9.0).all({d}, {k}).double()",
    "{v}.count_nonzero({d}).double()",
    "{v}.argmax({d}, {k}).double()",
    "{v}.argmin({d}, {k}).double()",
    "torch.aminmax({v}, dim={d}, keepdim={k})[0]",
    "{v}.norm(1.0, {d}, {k})",
    "{v}.sum({d}, keepdim={k}) / {v}.shape[{d}]",
    "{v}.sum({d}, keepdim={k}) / math.sqrt({v}.shape[{d}])",
    "{v}.logsumexp({d}, {k}) - math.log({v}.shape[{d}])",
    "{v}.abs().amax({d}, {k})",
    "torch.quantile({v}, 0.5, dim={d}, keepdim={k})",
)
ORDERED = (
    "{v}.topk(2, {d}).values",
    "{v}.sort({d}).values",
    "{v}.sort({d}, True)[0]",
    "{v}.kthvalue(2, {d})[0]",
    "{v}.mode({d})[0]",
    "{v}.cummax({d})[0]",
    "{v}.cummin({d})[0]",
    "{v}.gather({d}, {v}.argsort({d}))",
    "torch.topk({v}, 1, {d}, True, False)[0]",
    "torch.searchsorted(torch.linspace(-1.0, 1.0, 5), {v}.contiguous()).double()",
    "torch.bucketize({v}, torch.linspace(-1.0, 1.0, 4)).double()",
    "{v} * ({v} >= {v}.topk(3, {d}).values.amin({d}, True))",
    "{v}.msort()",
    "torch.unique({v}.round(), return_inverse=True)[1].double()",
    "torch.unique_consecutive({v}.sign(), return_inverse=True)[1].double()",
    "torch.multinomial({v}.abs() + 0.1, 2).double() * 0.0",
    "torch.unique({v}.flatten(1), dim=0, return_inverse=True)[1].double()",
)
LOSSES = (
    'F.mse_loss({a}, {b}, reduction="none")',
    "F.mse_loss({a}, {b})",
    'F.l1_loss({a}, {b}, reduction="none")',
    'F.smooth_l1_loss({a}, {b}, reduction="none", beta=1.0)',
    'F.huber_loss({a}, {b}, reduction="none", delta=1.0)',
    'F.binary_cross_entropy({a}.sigmoid(), {b}.sigmoid(), reduction="none")',
    "F.smooth_l1_loss({a}, {b})",
    'F.binary_cross_entropy_with_logits({a}, {b}.sigmoid(), reduction="none")',
    "F.binary_cross_entropy_with_logits({a}, {b}.sigmoid())",
    'F.soft_margin_loss({a}, {b}.sign(), reduction="none")',
    'F.kl_div({a}.log_softmax(-1), {b}.softmax(-1), reduction="none")',
    'F.mse_loss({a}, {b}, reduction="sum") * 0.1',
    'F.gaussian_nll_loss({a}, {b}, {b}.abs() + 1.0, reduction="none")',
    'F.poisson_nll_loss({a}, {b}.abs(), reduction="none")',
    "F.cross_entropy({a}, {b}.softmax(1))",
    "F.huber_loss({a}, {b})",
    'F.cross_entropy({a}, torch.zeros(2, dtype=torch.int64), reduction="none")',
    'F.nll_loss({a}.log_softmax(1), torch.ones(2, dtype=torch.int64), reduction="none")',
    'F.nll_loss({a}.log_softmax(1), torch.ones({a}.shape[:1] + {a}.shape[2:], dtype=torch.int64), reduction="mean")',
)
MATRICES = (
    "torch.linalg.det({m}).unsqueeze(1)",
    "torch.linalg.inv({m})",
    "torch.linalg.slogdet({m})[1].unsqueeze(1)",
    "torch.linalg.cholesky({m})",
    "torch.linalg.matrix_exp({m} * 0.1)",
    "torch.linalg.eigvalsh({m})",
    "torch.linalg.svdvals({m})",
    "torch.linalg.solve({m}, {v})",
    "torch.linalg.pinv({m})",
    "torch.linalg.qr({m})[1].abs()",
    "torch.linalg.lu_factor({m})[0]",
    "torch.linalg.eig({m})[0].abs().sum(-1, keepdim=True)",
    "torch.linalg.lu({m})[2]",
    "torch.cholesky_inverse(torch.linalg.cholesky({m}))",
    "torch.linalg.ldl_factor({m})[0]",
    "torch.linalg.matrix_power({m}, 2)",
    "torch.linalg.eigh({m})[0]",
    "torch.linalg.matrix_norm({m}).unsqueeze(1)",
    "torch.linalg.solve_triangular({m}, {v}, upper=False)",
    "torch.linalg.svd({m})[1]",
    "torch.trace({m}[0]) * {v}",
    "torch.linalg.lstsq({m}, {v})[0]",
)
SPECTRA = (
    "torch.fft.rfft({v}, dim={d}).abs()",
    "torch.fft.fft({v}, dim={d}).real",
    "torch.fft.irfft(torch.fft.rfft({v}, dim={d}), n={v}.shape[{d}], dim={d})",
    "torch.fft.ifft(torch.fft.fft({v}, dim={d}), dim={d}).real",
    "torch.fft.fft2({v}).abs()",
)


@BOOK.add(3)
def reduced(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    keep = draft.chance()
    if value.ndim == 2 and not keep:
        keep = True
    dim = draft.dim(value)
    if draft.chance(0.15) and value.ndim > 3:
        draft.let(
            draft.pick((f"{value}.mean((2, 3))", f"{value}.sum(dim=(-2, -1), keepdim=True)", f"{value}.amax((2, 3))"))
        )
        return
    draft.let(draft.pick(REDUCED).format(v=value, d=draft.index(value, dim), k=keep))


@BOOK.add(0.4)
def whole(draft: Draft) -> None:
    """A reduction of everything comes back as a factor."""
    value = draft.take()
    text = draft.pick(
        (
            "{v}.mean()",
            "{v}.sum() * 0.01",
            "{v}.abs().max()",
            "{v}.min()",
            "{v}.std()",
            "{v}.norm()",
            "{v}.square().mean().sqrt()",
            "{v}.median()",
            "({v} > 0.0).any()",
            "({v} > 9.0).all()",
            "{v}.tanh().prod()",
            "{v}.var()",
            "{v}.amax()",
            "{v}.numel()",
            "{v}.count_nonzero()",
        )
    )
    other = draft.take()
    draft.let(f"{other} * ({text.format(v=value)} * 0.1 + 1.0)")


@BOOK.add(1)
def ordered(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    draft.let(draft.pick(ORDERED).format(v=value, d=draft.index(value, draft.dim(value))))


@BOOK.add(0.5)
def loss(draft: Draft) -> None:
    value = draft.take(2, 3)
    made = draft.let(draft.pick(LOSSES).format(a=value, b=draft.alike(value)))
    if not made.ndim:
        draft.let(f"{value} + {made} * 0.1")


@BOOK.add(0.7)
def matrix(draft: Draft) -> None:
    value = draft.take(3)
    side = value.shape[1]
    # no two rows alike, or rounding decides which one is the pivot
    square = draft.let(f"{value} @ {value}.mT + torch.diag(torch.arange(1.0, {side + 1}))")
    made = draft.let(draft.pick(MATRICES).format(m=square, v=value))
    if made.ndim < 2:
        raise NoFitError


@BOOK.add(0.4)
def spectrum(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    draft.let(draft.pick(SPECTRA).format(v=value, d=draft.dim(value)))


@BOOK.add(0.3)
def cross(draft: Draft) -> None:
    value = draft.take(2, 3)
    layers = [draft.layer(f"nn.Linear({value.shape[-1]}, 3)") for _ in range(2)]
    draft.let(f"torch.linalg.cross({layers[0]}({value}), {layers[1]}({value}), dim=-1)")

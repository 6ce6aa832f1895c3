"""Pointwise functions: activations, arithmetic with numbers, parameters and other tensors, masks, casts."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError, Value
from tests.programs.grammar.productions.book import Book

BOOK = Book("activations")
ACTIVATIONS = (
    "F.relu({v})",
    "F.gelu({v})",
    '{v}.mul(F.gelu({v}, approximate="tanh"))',
    "{v}.tanh()",
    "{v}.sigmoid()",
    "F.silu({v})",
    "F.softplus({v}, 1.0, 20.0)",
    "F.elu({v}, 1.0) + 1.0",
    "F.elu({v}, 0.5)",
    "F.leaky_relu({v}, 0.2)",
    "F.mish({v})",
    "F.celu({v}, 0.5)",
    "F.selu({v})",
    "F.hardswish({v})",
    "F.hardsigmoid({v})",
    "F.hardtanh({v}, -0.5, 0.5)",
    "F.relu6({v})",
    "F.softshrink({v}, 0.1)",
    "F.hardshrink({v}, 0.1)",
    "F.tanhshrink({v})",
    "F.logsigmoid({v})",
    "F.threshold({v}, 0.1, 0.2)",
    "F.rrelu({v}, 0.1, 0.3)",
    "{v} * torch.sigmoid(1.702 * {v})",
    "F.softsign({v})",
    "F.relu({v}).square()",
)
FUNCTIONS = (
    "{v}.clamp(-1.0, 1.0)",
    "{v}.clamp(min=0.0)",
    "{v}.clamp_max(0.5)",
    "{v}.abs()",
    "{v}.absolute()",
    "{v}.square()",
    "{v}.pow(2)",
    "{v} ** 3 * 0.1",
    "({v}.abs() + 0.1).pow(0.5)",
    "({v}.abs() + 0.1).sqrt()",
    "({v}.abs() + 0.5).rsqrt()",
    "({v}.abs() + 0.5).log()",
    "({v}.abs() + 1.0).reciprocal()",
    "{v}.exp().clamp(0.0, 4.0)",
    "{v}.sin()",
    "{v}.cos()",
    "torch.atan({v})",
    "{v}.neg()",
    "torch.negative({v})",
    "-{v}",
    "{v}.expm1().clamp_max(3.0)",
    "{v}.abs().log1p()",
    "torch.special.erf({v})",
    "torch.special.expit({v})",
    "{v}.sign()",
    "{v}.floor()",
    "{v}.round()",
    "{v}.frac()",
    "{v}.fmod(0.7)",
    "{v}.remainder(0.7)",
    "torch.floor_divide({v}, 0.5)",
    "{v}.nan_to_num(0.0)",
    "torch.lerp({v}, {v}.tanh(), 0.3)",
    "torch.addcmul({v}, {v}, {v}.sigmoid(), value=0.5)",
    "torch.addcdiv({v}, {v}, {v}.square() + 1.0, value=0.5)",
    "torch.copysign({v}, {v}.sin())",
    "torch.xlogy({v}, {v}.abs() + 1.0)",
    "torch.float_power({v}.abs(), 1.5)",
    "torch.heaviside({v}, {v}.abs())",
    "torch.logit({v}.sigmoid(), 0.01)",
    "torch.hypot({v}, {v}.cos())",
    "torch.logaddexp({v}, {v}.sin())",
    "torch.atan2({v}, {v}.square() + 1.0)",
    "torch.sinc({v})",
    "torch.sgn({v})",
    "torch.asinh({v})",
    "torch.erfc({v})",
)
NUMBERS = (
    "{v} * 2.0",
    "{v} / 3.0",
    "{v} + 0.5",
    "{v} - 0.5",
    "1.0 - {v}",
    "2.0 / ({v}.abs() + 1.0)",
    "torch.rsub({v}, 1.0)",
    "{v}.mul(0.5).add(1.0)",
    "torch.add({v}, {v}, alpha=0.5)",
    "torch.sub({v}, {v}.tanh(), alpha=2.0)",
    "torch.true_divide({v}, 2.0)",
    "torch.divide({v}, 2.0)",
    "torch.multiply({v}, 0.5)",
    "torch.subtract({v}, 1.0)",
    "{v} * torch.tensor(0.5)",
    "{v} / torch.sqrt(torch.tensor(4.0))",
    "{v} + torch.scalar_tensor(1.0)",
    "{v} * math.sqrt(2)",
    "{v} / 2 ** 0.5",
)
COPIES = (
    "{v}.clone()",
    "{v}.contiguous()",
    "{v}.detach()",
    "{v}.to(torch.float64)",
    "{v}.double()",
    "{v}.type_as({v})",
    "+{v}",
    "torch.positive({v})",
    "{v}.cpu()",
    "{v}.resolve_conj()",
    "{v}.resolve_neg()",
    "{v}.to({v}.device)",
    "{v}.alias()",
    "torch.ops.aten.alias({v})",
    "{v}.to(dtype=torch.float64, copy=True)",
    "torch.zeros_like({v}).copy_({v})",
    "torch.empty_like({v}).copy_({v})",
    "{v}.requires_grad_(False)",
    "torch.ops.aten.copy({v}, {v})",
    "torch.ops.aten.lift_fresh({v})",
    "torch.ops.aten._to_copy({v})",
    "F.dropout({v}, 0.3, self.training)",
    "F.dropout({v}, 0.3, False)",
    "F.alpha_dropout({v}, 0.3, False)",
    "F.feature_alpha_dropout({v}, 0.2, False)",
    "torch.feature_dropout({v}, 0.5, False)",
    "F.dropout1d({v}, 0.2, False)",
    "torch.native_dropout({v}, 0.5, False)[0]",
    "torch.fake_quantize_per_tensor_affine({v}.float(), 0.1, 0, -128, 127).double()",
    "nn.Identity()({v})",
)
MASKS = (
    "{v}.masked_fill({v} > 0.5, 0.0)",
    "{v}.masked_fill({v}.lt(0.0), 0.1)",
    "torch.where({v} > 0.0, {v}, {v} * 0.1)",
    "torch.where(({v} > -0.5) & ({v} < 0.5), {v}, 0.0)",
    "{v} * ({v} >= 0.0)",
    "{v} * (({v} > 0.0) | ({v} < -1.0))",
    "{v} * (~({v} > 0.0)).to({v}.dtype)",
    "{v} * {v}.ne(0.0)",
    "{v} * torch.logical_and({v} > 0.0, {v} < 1.0)",
    "{v} * torch.logical_or({v} > 0.5, {v} < -0.5)",
    "{v} * torch.logical_not({v} > 0.5)",
    "{v} * torch.isfinite({v})",
    "torch.where(torch.isnan({v}), 0.0, {v})",
    "torch.where(torch.isinf({v}), 1.0, {v})",
    "{v} * {v}.le(0.3)",
    "{v} + ({v} == 0.0).double()",
    "torch.logical_xor({v} > 0.0, {v} > 0.5) * {v}",
)
PAIRS = (
    "{a} * {b}",
    "{a} + {b}",
    "{a} - {b}",
    "{a} / ({b}.abs() + 1.0)",
    "torch.maximum({a}, {b})",
    "torch.minimum({a}, {b})",
    "torch.max({a}, {b})",
    "torch.min({a}, {b})",
    "{a} * {b}.sigmoid()",
    "torch.where({a} > {b}, {a}, {b})",
    "torch.lerp({a}, {b}, 0.3)",
    "torch.addcmul({a}, {a}, {b}, value=0.5)",
    "F.silu({a}) * {b}",
    "{a} + 0.5 * {b}",
    "torch.add({a}, {b}, alpha=2.0)",
    "{a} + ({b} - {a}) * 0.5",
    "torch.fmod({a}, {b}.abs() + 1.0)",
    "F.relu({a} - {b})",
    "{a} * {b}.exp().clamp_max(2.0)",
    "torch.fmax({a}, {b})",
    "torch.atan2({a}, {b}.abs() + 0.5)",
    "{a} ** 2 + {b} ** 2",
)


@BOOK.add(5)
def activation(draft: Draft) -> None:
    value = draft.take()
    if draft.chance(0.2):
        kind = draft.pick(
            ("ReLU()", "GELU()", "SiLU()", "Tanh()", "Softplus()", "PReLU()", "Dropout(0.1)", "Hardswish()")
        )
        draft.let(f"{draft.layer(f'nn.{kind}')}({value})")
    else:
        draft.let(draft.pick(ACTIVATIONS).format(v=value))


@BOOK.add(3)
def function(draft: Draft) -> None:
    draft.let(draft.pick(draft.pick((FUNCTIONS, FUNCTIONS, NUMBERS, COPIES, MASKS))).format(v=draft.take()))


@BOOK.add(4)
def pair(draft: Draft) -> None:
    value = draft.take()
    draft.let(draft.pick(PAIRS).format(a=value, b=draft.alike(value)))


@BOOK.add(2)
def broadcast(draft: Draft) -> None:
    """Two tensors of which one is repeated along some dims."""
    value = draft.take()

    def fits(other: Value) -> bool:
        sizes = list(zip(reversed(value.shape), reversed(other.shape), strict=False))
        return other.name != value.name and all(1 in pair or pair[0] == pair[1] for pair in sizes)

    other = draft.take(where=fits)
    draft.let(draft.pick(PAIRS).format(a=value, b=other))


@BOOK.add(2)
def prelu(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    if draft.chance():
        draft.let(f"{draft.layer(f'nn.PReLU({value.shape[1]})')}({value})")
    else:
        draft.let(f"F.prelu({value}, {draft.parameter(value.shape[1])})")


@BOOK.add(3)
def scale(draft: Draft) -> None:
    """A parameter or buffer along some dims."""
    value = draft.take()
    dim = draft.dim(value)
    shape = [1] * (value.ndim - dim)
    shape[0] = value.shape[dim]
    if draft.chance(0.2):
        shape = list(value.shape[dim:])
    name = draft.buffer(*shape) if draft.chance(0.15) else draft.parameter(*shape)
    pattern = draft.pick(
        (
            "{v} * {p}",
            "{v} + {p}",
            "{v} - {p}",
            "{p} * {v}",
            "{v} * {p}.sigmoid()",
            "{v} * (1 + {p})",
            "{v} / ({p}.abs() + 1.0)",
            "torch.where({v} > {p}, {v}, 0.1 * {v})",
            "{v} * F.softplus({p})",
            "torch.addcmul({v}, {p}, {v}, value=0.5)",
            "torch.add({p}, {v}, alpha=0.5)",
        )
    )
    draft.let(pattern.format(v=value, p=name))


@BOOK.add(1)
def gate(draft: Draft) -> None:
    """Squeeze and excitation, or a gate from the last dim."""
    value = draft.take(2, 3, 4)
    channels, hidden = value.shape[-1], draft.width()
    if value.ndim == 4:
        channels = value.shape[1]
        down, up = (
            draft.layer(f"nn.Conv2d({channels}, {hidden}, 1)"),
            draft.layer(f"nn.Conv2d({hidden}, {channels}, 1)"),
        )
        squeezed = draft.let(draft.pick((f"{value}.mean((2, 3), keepdim=True)", f"F.adaptive_avg_pool2d({value}, 1)")))
        draft.let(f"{value} * {up}(F.relu({down}({squeezed}))).sigmoid()")
    else:
        layer = draft.layer(f"nn.Linear({channels}, {channels})")
        draft.let(
            draft.pick(
                ("{v} * {l}({v}).sigmoid()", "{v} + {l}({v}).tanh()", "{v} * F.softmax({l}({v}), dim=-1)")
            ).format(v=value, l=layer)
        )


@BOOK.add(1)
def complexes(draft: Draft) -> None:
    """Pairs of numbers as complex ones, and back."""
    value = draft.take(2, 3, 4, where=lambda v: v.shape[-1] % 2 == 0)
    half = value.shape[-1] // 2
    form = draft.pick(range(4))
    if form == 0:
        turn = draft.let(f"torch.polar(torch.ones({half}, dtype=torch.float64), torch.arange({half}).double())")
        pairs = draft.let(f"torch.view_as_complex({value}.reshape(*{value}.shape[:-1], -1, 2).contiguous())")
        draft.let(f"torch.view_as_real({pairs} * {turn}).flatten(-2)")
    elif form == 1:
        made = draft.let(f"torch.complex({value}, {value}.sin())")
        draft.let(f"({made} * {made}.conj()).real")
    elif form == 2:
        made = draft.let(f"torch.complex({value}, {value}.cos())")
        draft.let(f"{made}.abs() + {made}.imag")
    else:
        one, two = draft.let(f"{value}[..., ::2]"), draft.let(f"{value}[..., 1::2]")
        draft.let(f"torch.stack([-{two}, {one}], -1).flatten(-2)")


@BOOK.add(0.5)
def counted(draft: Draft) -> None:
    """Noise that is multiplied away, tensors like others, quotients without a rest."""
    value = draft.take()
    pattern = draft.pick(
        (
            "{v} + torch.zeros_like({v})",
            "{v} * torch.ones_like({v})",
            "{v} + torch.full_like({v}, 0.5)",
            "{v} + torch.rand_like({v}) * 0.0",
            "{v} + torch.randn_like({v}) * 0.0",
            "{v} + {v}.new_zeros({v}.shape)",
            "{v} + {v}.clone().fill_(0.5)",
            "{v} + {v}.clone().zero_()",
            "{v} + {v}.clone().normal_(0.0, 1.0) * 0.0",
            "{v} + {v}.clone().uniform_(0.0, 1.0) * 0.0",
            "{v} + torch.bernoulli({v}.sigmoid()) * 0.0",
            "{v} + {v}.clone().exponential_(1.0) * 0.0",
            "{v} + {v}.clone().bernoulli_(0.5) * 0.0",
            "{v} + torch.poisson({v}.abs()) * 0.0",
            "{v} + {v}.clone().geometric_(0.5) * 0.0",
            "{v} + {v}.clone().log_normal_(0.0, 0.1) * 0.0",
            "{v} + {v}.clone().cauchy_(0.0, 0.1).clamp(-1.0, 1.0) * 0.0",
            "{v} + torch.normal({v}, 0.1) * 0.0",
            "{v} + {v}.clone().random_(5) * 0.0",
            "{v} + torch.empty_like({v}).fill_(1.0)",
            "{v} + torch._standard_gamma({v}.abs() + 1.0) * 0.0",
            "torch.ops.aten.fill({v}, 0.5) + {v}",
            "{v} + torch.ops.aten.zero({v})",
            "torch.div({v}, 0.5, rounding_mode='floor')",
            "torch.div({v}, {v}.abs() + 1.0, rounding_mode='trunc')",
            "torch.divide({v}, 0.5, rounding_mode='trunc')",
            "torch.divide({v}, {v}.abs() + 1.0, rounding_mode='floor')",
            "{v}.clone().div_(0.5, rounding_mode='floor')",
            "{v}.clone().div_({v}.abs() + 1.0, rounding_mode='trunc')",
        )
    )
    draft.let(pattern.format(v=value))


@BOOK.add(0.0)
def nothing(draft: Draft) -> None:
    raise NoFitError

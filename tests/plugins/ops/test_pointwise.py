"""Rules of pointwise operations: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import pointwise
from tests.plugins.ops.cases import case, checks_of

CLOSE = 1e-12  # vectorised and scalar code of one function may differ in the last bits
HALF = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
MASK = torch.rand(2, 5, generator=torch.Generator().manual_seed(1)) > 0.5

EXCUSED = {
    "aten::detach": "the recorder takes its result for the same tensor",
    "aten::cpu": "arrives as aten::to",
    "aten::cuda": "needs a GPU",
    "aten::glu_jvp": "a forward-mode derivative, which a forward pass never runs",
}

UNARY = """
aten.celu(x) aten.elu(x) aten.gelu(x) aten.hardshrink(x) aten.hardsigmoid(x) aten.hardswish(x) aten.hardtanh(x)
aten.leaky_relu(x) aten.log_sigmoid(x) aten.mish(x) aten.nan_to_num(x) aten.relu(x) aten.relu6(x) aten.selu(x)
aten.sigmoid(x) aten.silu(x) aten.softplus(x) aten.softshrink(x) aten.square(x) aten.tanh(x) aten.isinf(x) aten.isnan(x)
aten.isfinite(x) aten.logical_not(x) aten.absolute(x) aten.negative(x) aten.special_erf(x) aten.special_expit(x)
aten.exp(x) aten.log(x) aten.rsqrt(x) aten.sqrt(x) aten.reciprocal(x) F.softsign(x) F.tanhshrink(x) F.logsigmoid(x)
torch.sin(x) torch.cos(x) torch.erf(x) F.threshold(x,0.5,2.0,inplace=True) x.abs() -x x.float() x.double()
x.half() x.bfloat16() torch.clamp(x,0.2,0.7) torch.clamp(x,min=0.3) x.clamp_min(0.3) x.clamp_max(0.3) x.pow_(2)
x.relu_() F.hardswish(x,inplace=True) x.mul_(2) x.add(2) x*2 2-x 1/x
aten.add.Scalar(x,2) aten.rsub(x,1) aten.pow(x,2) x**-0.5 2**x x//0.3 x%0.3 aten.floor_divide(x,0.3)
aten.remainder(x,0.3) aten.fmod(x,0.3) x.eq(0.5) x.ne(0.5) x.lt(0.5) x.gt(0.5) x.le(0.5) x.ge(0.5)
"""
SAME = """
aten.alias(x) x.clone() aten.contiguous(x) aten.alpha_dropout(x,0.5,False) aten.feature_alpha_dropout(x,0.5,False)
aten.feature_dropout(x,0.5,False) F.dropout(x,0.5,False) aten.lift_fresh(x) aten.positive(x) aten.resolve_conj(x)
aten.resolve_neg(x) F.rrelu(x) x.to(torch.float32) x.to("cpu") aten._to_copy(x,dtype=torch.float32) x.cpu()
torch.zeros_like(x) torch.ones_like(x) torch.full_like(x,3.0) x.fill_(2.0) x.zero_() aten.fill(x,2.0) aten.zero(x)
aten.requires_grad_(x,False) aten.fake_quantize_per_tensor_affine(x,0.1,0,-128,127)
"""
RANDOM = """
aten.bernoulli(x) x.bernoulli_(0.5) aten.normal(x,1.0) x.normal_() F.dropout(x,0.5,True) x.uniform_() x.random_()
x.exponential_() x.cauchy_() x.log_normal_() x.geometric_(0.5) torch.poisson(x.abs()) torch._standard_gamma(x.abs())
aten.uniform(x) aten.random(x) aten.exponential(x) torch.empty_like(x) torch.rand_like(x)
torch.randn_like(x) F.rrelu(x,training=True)
"""
BINARY = """
x+y x-y x*y x/y x.add(y,alpha=3) aten.true_divide(x,y) aten.divide(x,y) aten.multiply(x,y) aten.subtract(x,y)
aten.logical_and(x,y) aten.logical_or(x,y) aten.lerp(x,y,0.3) aten.pow(x,y) aten.maximum(x,y) aten.minimum(x,y)
torch.max(x,y) torch.min(x,y) aten.eq(x,y) aten.ne(x,y) aten.lt(x,y) aten.gt(x,y) aten.le(x,y) aten.ge(x,y)
aten.floor_divide(x,y) aten.remainder(x,y) aten.fmod(x,y) torch.atan2(x,y) torch.where(x>0.5,x,y) x.mul_(y) x.div_(y)
aten._prelu_kernel(x,y) aten.rsub(x,y) torch.xlogy(x,y) x.xlogy_(y)
"""

CASES = [
    *(case(text, "a2 b5 -> a2 b5", x=HALF, tolerance=CLOSE) for text in UNARY.split()),
    *(case(text, "a2 b5 -> a2 b5", x=HALF) for text in SAME.split()),
    *(case(text, "a2 b5 -> a2 b5", x=HALF, values=False) for text in RANDOM.split()),
    *(case(text, "a2 b5, a2 b5 -> a2 b5", x=HALF, y=HALF.flip(0).clone(), tolerance=CLOSE) for text in BINARY.split()),
    case("aten.native_dropout(x, 0.5, False)", "a2 b5 -> a2 b5, a2 b5", x=HALF),
    case("x.detach() * 1", "a2 b5 -> a2 b5", x=HALF),
    case("x.type_as(y)", "a2 b5, c3 -> a2 b5", x=HALF, y=(3,)),
    # broadcasting: dims of size one tie nothing
    case("x + y", "a2 b5, 1 b5 -> a2 b5", x=(2, 5), y=(1, 5), says={"x1": ""}),
    case("x * y", "a2 b5, a2 1 -> a2 b5", x=(2, 5), y=(2, 1)),
    case("x * y", "a2 b5, b5 -> a2 b5", x=(2, 5), y=(5,), weights="y", says={"y0": "along"}),
    case("x * y", "a5, b2 a5 -> b2 a5", x=(5,), y=(2, 5)),
    case("x + y", "a2 1, 1 b5 -> a2 b5", x=(2, 1), y=(1, 5)),
    case("x * y", "a2 b5, () -> a2 b5", x=(2, 5), y=()),
    case("x * y", "a2 b5, 1 -> a2 b5", x=(2, 5), y=(1,)),
    case("x * y", "(), () -> ()", x=(), y=()),
    case("x * y", "a2 0, a2 1 -> a2 0", x=(2, 0), y=(2, 1)),
    case("x + y", "a2 1 b4 c3, d5 1 c3 -> a2 d5 b4 c3", x=(2, 1, 4, 3), y=(5, 1, 3)),
    case("x.mul_(y)", "a2 b5, b5 -> a2 b5", x=(2, 5), y=(5,)),
    # two activations of one shape make a stream
    case("x + y", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5), says={"x1": "stream"}),
    case("x.add_(y)", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5), says={"x1": "stream"}),
    case("x + y", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5), weights="y", says={"x1": ""}),
    # three tensors
    case("torch.addcmul(x, y, z, value=2)", "a2 b5, a2 b5, b5 -> a2 b5", x=(2, 5), y=(2, 5), z=(5,)),
    case("torch.addcdiv(x, y, z)", "a2 b5, a2 b5, a2 1 -> a2 b5", x=(2, 5), y=(2, 5), z=(2, 1), tolerance=CLOSE),
    case("torch.lerp(x, y, z)", "a2 b5, a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5), z=(2, 5)),
    case("torch.where(m, x, y)", "2! 5!, 2! 5!, () -> 2! 5!", m=MASK, x=(2, 5), y=()),
    case("x.masked_fill(m, y)", "a3 2! 5!, 2! 5!, () -> a3 2! 5!", x=(3, 2, 5), m=MASK, y=()),
    case("x.masked_fill(y > 3, z)", "a2 b5, b5, () -> a2 b5", x=(2, 5), y=(5,), z=()),
    # over one dim
    *(
        case(
            f"{name}(x, {dim})",
            "a3 b4 -> a3 b4",
            x=HALF[0, :4].repeat(3, 1),
            says={"x1": "mix", "x0": ""},
            tolerance=CLOSE,
        )
        for name in ("torch.softmax", "torch.log_softmax")
        for dim in (1, -1)
    ),
    case("aten._softmax(x, 0, False)", "a3 b4 -> a3 b4", x=(3, 4), says={"x0": "mix", "x1": ""}, tolerance=CLOSE),
    case("aten._log_softmax(x, 0, False)", "a3 b4 -> a3 b4", x=(3, 4), says={"x0": "mix"}, tolerance=CLOSE),
    case("torch.flip(x, (1,))", "a3 4! -> a3 4!", x=(3, 4), pins={"x1": "order along this dim matters"}),
    case("torch.flip(x, (0, -1))", "3! a4 2! -> 3! a4 2!", x=(3, 4, 2)),
    case("torch.roll(x, 2, 1)", "a3 4! -> a3 4!", x=(3, 4), pins={"x1": "order along this dim matters"}),
    case("torch.roll(x, (1, 2), (0, -1))", "3! a4 2! -> 3! a4 2!", x=(3, 4, 2)),
    case("torch.roll(x, 2)", "3! 4! -> 3! 4!", x=(3, 4)),
    case("torch.triu(x, 1)", "a2 3! 4! -> a2 3! 4!", x=(2, 3, 4), pins={"x2": "a triangle is cut out of this dim"}),
    case("torch.tril(x)", "a2 3! 4! -> a2 3! 4!", x=(2, 3, 4)),
    # writing into a tensor
    case("x.copy_(y)", "a2 b5, a2 b5 -> a2 b5", x=(2, 5), y=(2, 5)),
    case("x.copy_(y)", "a2 b5, b5 -> a2 b5", x=(2, 5), y=(5,)),
    case("x.copy_(y)", "a2 b5, 1 -> a2 b5", x=(2, 5), y=(1,)),
    case("aten.copy(x, y)", "a2 b5, b5 -> a2 b5", x=(2, 5), y=(5,)),
    case("(x[:, :2].copy_(y), x)[1]", "a3 (b2+c3), a3 b2 -> a3 (b2+c3)", x=(3, 5), y=(3, 2)),
    # one slope per channel, or one for all
    case("F.prelu(x, w)", "a2 b5 c3, b5 -> a2 b5 c3", x=(2, 5, 3), w=(5,), weights="w", says={"w0": "along"}),
    case("F.prelu(x, w)", "a2 b5, b5 -> a2 b5", x=(2, 5), w=(5,)),
    case("torch.isin(x, y)", "a2 b3, c4 -> a2 b3", x=(2, 3), y=(4,), says={"x0": "", "y0": "mix"}),
    case("torch.isin(x, 2)", "a2 b3 -> a2 b3", x=(2, 3)),
    case("torch.isin(2, x)", "a2 b3 -> ()", x=(2, 3), says={"x0": "mix"}),
    case("F.prelu(x, w)", "a2 b5 c3, 1 -> a2 b5 c3", x=(2, 5, 3), w=(1,)),
    case("x.clone().abs_()", "a2 b3 -> a2 b3", x=(2, 3)),
    case("torch.complex(x, y).abs()", "a2 b3, a2 b3 -> a2 b3", x=(2, 3), y=(2, 3), tolerance=1e-12),
    case("torch.polar(x, y).real", "a2 b3, a2 b3 -> a2 b3", x=(2, 3), y=(2, 3), tolerance=1e-12),
    case("x.copysign(y)", "a2 b3, a2 b3 -> a2 b3", x=(2, 3), y=(2, 3)),
    case("aten._safe_softmax(x, 1)", "a2 b3 -> a2 b3", x=(2, 3), says={"x1": "mix"}, tolerance=1e-12),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    pointwise.RULES, CASES, EXCUSED
)

"""Pointwise operations, and others that hand every dim of their input on."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit_core import Axis, AxisMismatchError, Kind, OpCall, Role, Rule, TensorArgument, Verb, is_pinned


def broadcast(call: OpCall, tensors: list[TensorArgument], shape: tuple[int, ...]) -> list[Axis]:
    """Ties the trailing dims of some tensors as broadcasting does; dims of size one tie nothing."""
    result: list[Axis | None] = [None] * len(shape)
    for tensor in tensors:
        for back in range(1, min(len(shape), tensor.ndim) + 1):
            if tensor.shape[-back] != shape[-back] or shape[-back] == 1:
                continue
            present = result[-back]
            result[-back] = tensor.axes[-back] if present is None else call.tie(present, tensor.axes[-back])
    return [call.fresh(size, "broadcast") if axis is None else axis for axis, size in zip(result, shape, strict=True)]


def pointwise(call: OpCall) -> list[Axis]:
    """Each output element depends on the input elements at its own place only."""
    tensors = [tensor for tensor in call.tensors() if tensor.ndim]
    for tensor in tensors:
        for axis in tensor.axes:
            call.role(axis, Role.ALONG)
    return broadcast(call, tensors, call.shape)


def add(call: OpCall) -> list[Axis]:
    """Pointwise; where two activations are added their common axis is a stream."""
    result = pointwise(call)
    operands = [tensor for tensor in call.tensors() if tensor.ndim == len(call.shape) and not tensor.parameter]
    if len(operands) == 2 and operands[0].shape == operands[1].shape:
        for axis in result:
            if not is_pinned(axis):
                call.kind(axis, Kind.STREAM)
    return result


def like_first(call: OpCall) -> list[Axis]:
    """The output has the dims of the first tensor; further tensors only lend dtype, device or randomness."""
    return list(call.tensors()[0].axes)


def softmax(call: OpCall) -> list[Axis]:
    """Normalises over one dim: legal to prune there, but the rest is renormalised."""
    source = call.tensors()[0]
    call.whole(source.axes[call["dim"]], Verb.MIX)
    return list(source.axes)


def along_dim(call: OpCall) -> list[Axis]:
    """Positions along one dim depend on their neighbours (cumulative sums): that dim is pinned."""
    source = call.tensors()[0]
    call.pin(source.axes[call["dim"]], "order along this dim matters")
    return list(source.axes)


def along_dims(call: OpCall) -> list[Axis]:
    """Positions move along the given dims (flip, roll): those dims are pinned."""
    source = call.tensors()[0]
    dims = call["dims"]
    chosen = [dims] if isinstance(dims, int) else list(dims)
    call.pin([source.axes[dim] for dim in chosen] if chosen else source.axes, "order along this dim matters")
    return list(source.axes)


def last_two(call: OpCall) -> list[Axis]:
    """Triangles are cut out of the last two dims."""
    source = call.tensors()[0]
    call.pin(source.axes[-2:], "a triangle is cut out of this dim")
    return list(source.axes)


def copy_into(call: OpCall) -> list[Axis]:
    """``copy_`` writes one tensor into another, broadcasting."""
    target, source = call["self"], call["src"]
    broadcast(call, [target, source], target.shape)
    return list(target.axes)


def prelu(call: OpCall) -> list[Axis]:
    """The weight lies along dim 1 of the input, unless it holds one value for all."""
    source, weight = call["self"], call["weight"]
    if weight.shape and weight.shape[-1] > 1:
        if source.ndim < 2:
            raise AxisMismatchError("prelu with several weights needs a channel dim")
        call.tie(source.axes[1], weight.axes[-1])
        call.role(weight.axes[-1], Role.ALONG)
    return list(source.axes)


_SAME = """
alias alpha_dropout bernoulli clone contiguous detach dropout feature_alpha_dropout feature_dropout lift_fresh
native_dropout normal positive resolve_conj resolve_neg rrelu to _to_copy type_as uniform random exponential
zeros_like ones_like empty_like full_like rand_like randn_like fill zero requires_grad_ view_as_real_copy
float half double bfloat16 cpu cuda fake_quantize_per_tensor_affine
"""

_POINTWISE = """
add.Scalar celu clamp elu gelu glu_jvp hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logsigmoid
masked_fill mish nan_to_num relu relu6 rsub selu sigmoid silu softplus softshrink softsign square tanh tanhshrink where
floor_divide remainder fmod true_divide divide multiply subtract isinf isnan isfinite logical_not logical_and
logical_or absolute negative special_erf special_expit lerp addcmul addcdiv pow exp log rsqrt sqrt reciprocal
maximum minimum max.other min.other eq ne lt gt le ge
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    torch.Tag.pointwise: pointwise,
    **{f"aten::{name}": like_first for name in _SAME.split()},
    **{f"aten::{name}": pointwise for name in _POINTWISE.split()},
    "aten::add.Tensor": add,
    "aten::add_.Tensor": add,
    "aten::softmax": softmax,
    "aten::_softmax": softmax,
    "aten::log_softmax": softmax,
    "aten::_log_softmax": softmax,
    "aten::cumsum": along_dim,
    "aten::cumprod": along_dim,
    "aten::flip": along_dims,
    "aten::roll": along_dims,
    "aten::triu": last_two,
    "aten::tril": last_two,
    "aten::copy_": copy_into,
    "aten::copy": copy_into,
    "aten::prelu": prelu,
    "aten::_prelu_kernel": pointwise,
}

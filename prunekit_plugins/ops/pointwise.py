"""Pointwise operations, and others that hand every dim of their input on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit.plugin import (
    ELEMENTWISE,
    Addition,
    Axis,
    AxisMismatchError,
    Kind,
    OpCall,
    Operands,
    OpRule,
    Role,
    Rule,
    Scaling,
    TensorArgument,
    Verb,
    is_pinned,
)
from prunekit_plugins.ops.names import aten


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
        for dim in range(tensor.ndim):
            call.role(tensor, dim, Role.ALONG)
    if any(call.expanded_dims(tensor) for tensor in tensors):
        call.expanded(set.intersection(*(same_along(call, tensor, call.shape) for tensor in tensors)))
    return broadcast(call, tensors, call.shape)


def same_along(call: OpCall, tensor: TensorArgument, shape: tuple[int, ...]) -> set[int]:
    """Lists the dims of a shape along which a tensor that is broadcast to it has equal elements."""
    lead = len(shape) - tensor.ndim
    equal = call.expanded_dims(tensor)
    return {dim for dim in range(len(shape)) if dim < lead or tensor.shape[dim - lead] == 1 or dim - lead in equal}


def _like_only_tensor(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """What is computed of each real number is like the input; of integers and with complex numbers it may not be."""
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    if any(isinstance(value, complex) for value in arguments.values()):
        return None
    return tensors[0] if len(tensors) == 1 and tensors[0].is_floating_point() else None


def _like_converted(arguments: Mapping[str, Any]) -> tuple[torch.dtype, Sequence[int]] | None:
    """A contiguous tensor in another dtype is a new contiguous one."""
    source = arguments["self"]
    changed = arguments["dtype"] != source.dtype and arguments.get("memory_format") is None
    return (arguments["dtype"], source.shape) if changed and source.is_contiguous() else None


def _like_operands(arguments: Mapping[str, Any]) -> torch.Tensor | tuple[torch.Tensor, Sequence[int]] | None:
    """Sums and products of real numbers of one dtype have the broadcast shape; an integer with integers is one."""
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    scalars = [value for value in arguments.values() if not isinstance(value, torch.Tensor)]
    first = tensors[0]
    if any(isinstance(scalar, complex) for scalar in scalars):
        return None
    if len(tensors) == 1 and not first.is_floating_point():
        whole = first.dtype in _INTEGERS and all(type(scalar) is int for scalar in scalars)
        return first if whole else None
    if not all(t.dtype == first.dtype and t.is_floating_point() and t.dim() for t in tensors):
        return None
    shape = _broadcast_shape([t.shape for t in tensors])
    if shape is None:
        return None
    if tuple(first.shape) == shape:
        return first
    return (first, shape) if all(t.is_contiguous() for t in tensors) else None


def _broadcast_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """The shape that shapes are broadcast to; None where they don't fit. PyTorch's own function loads sympy."""
    ndim = max(map(len, shapes))
    found = [1] * ndim
    for shape in shapes:
        for dim, size in enumerate(shape, ndim - len(shape)):
            if size != 1 and found[dim] not in (1, size):
                return None
            found[dim] = found[dim] if size == 1 else size
    return tuple(found)


_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def add(call: OpCall) -> list[Axis]:
    """Pointwise; where two activations are added their common axis is a stream."""
    result = pointwise(call)
    operands = [tensor for tensor in call.tensors() if tensor.ndim == len(call.shape) and not tensor.parameter]
    if len(operands) == 2 and operands[0].shape == operands[1].shape:
        for axis in result:
            if not is_pinned(axis):
                call.kind(axis, Kind.STREAM)
    return result


def zeros_of_first(operands: Operands, dim: int) -> bool:
    """The output is zero where the first tensor is."""
    return operands.everywhere(*operands.operation.references()[:1])


def always_zero(operands: Operands, dim: int) -> bool:
    """Zeros, or memory that nobody may read before it is written."""
    return True


def filled_with_zero(operands: Operands, dim: int) -> bool:
    """One number everywhere."""
    value = operands["fill_value"] if "fill_value" in operands.operation.arguments else operands["value"]
    return isinstance(value, int | float) and value == 0


def like_first(call: OpCall) -> list[Axis]:
    """The output has the dims of the first tensor; further tensors only lend dtype, device or randomness."""
    return list(call.tensors()[0].axes)


def copied(call: OpCall) -> list[Axis]:
    """The same elements in another place, dtype or memory."""
    source, *others = call.tensors()
    call.expanded(call.expanded_dims(source))
    dtype = others[0].dtype if others else call.get("dtype")
    if dtype is torch.bool:
        call.pin_positions(source, "whether it is the first one is asked for")
    call.numbers(call.domain(source))
    return like_first(call)


def filled(call: OpCall) -> list[Axis]:
    """One value in the shape of the first tensor."""
    call.expanded(range(len(call.shape)))
    return like_first(call)


def dropout_with_mask(call: OpCall) -> list[list[Axis]]:
    """The mask has the dims of the input, too."""
    return [like_first(call), like_first(call)]


def _like_softmax(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """A softmax is like its input, unless it is asked for another dtype."""
    source: torch.Tensor = arguments["self"]
    same = arguments.get("dtype") in (None, source.dtype) and not arguments.get("half_to_float")
    fits = source.is_floating_point() and -source.dim() <= arguments["dim"] < source.dim()
    return source if same and fits and source.is_contiguous() else None


def softmax(call: OpCall) -> list[Axis]:
    """Normalises over one dim: legal to prune there, but the rest is renormalised."""
    source = call.tensors()[0]
    call.whole(source.axes[call["dim"]], Verb.MIX)
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


def among(call: OpCall) -> list[Axis]:
    """``isin``: whether numbers are among those of a tensor depends on all of the latter."""
    elements = call.get("elements")
    for tensor in call.tensors():
        if tensor is not elements:
            for axis in tensor.axes:
                call.whole(axis, Verb.MIX)
    return [] if elements is None else list(elements.axes)


def prelu(call: OpCall) -> list[Axis]:
    """The weight lies along dim 1 of the input, unless it holds one value for all."""
    source, weight = call["self"], call["weight"]
    if weight.shape and weight.shape[-1] > 1:
        if source.ndim < 2:
            raise AxisMismatchError("prelu with several weights needs a channel dim")
        call.tie(source.axes[1], weight.axes[-1])
        call.role(weight, -1, Role.ALONG)
    return list(source.axes)


def zeros_of_source(operands: Operands, dim: int) -> bool:
    """What is written is zero; it broadcasts."""
    source = operands["src"]
    back = len(operands.shape) - dim
    return operands.ndim(source) >= back and operands.along(source, -back)


_SAME = """
_standard_gamma alpha_dropout bernoulli cauchy empty_like exponential feature_alpha_dropout feature_dropout fill
geometric log_normal normal poisson rand_like randn_like random requires_grad_ rrelu uniform zero
"""
"""Of ``empty_like``, ``fill`` and ``zero`` more is said further down."""

_COPIES = "_to_copy alias clone contiguous cpu cuda detach lift_fresh positive resolve_conj resolve_neg to type_as"
_SUMS = "add rsub subtract"
_NEGATIONS = "neg negative"
_QUOTIENTS = "div.Tensor div_.Tensor divide.Tensor true_divide.Tensor"
"""Quotients; overloads that round don't scale."""

_ACTIVATIONS = """
celu elu gelu hardshrink hardsigmoid hardswish hardtanh log_sigmoid mish relu6 selu sigmoid silu softplus softshrink
tanh
"""
_FUNCTIONS = "cos exp log sin"
_HOMOGENEOUS = "leaky_relu relu"
"""Activations that scale with what they are given."""

_SELECTIONS = "clamp clamp_max clamp_min masked_fill max.other maximum min.other minimum where"
"""Each element of the result is one of an operand at the same place."""
_POWERS = "abs absolute pow.Tensor_Scalar pow_.Scalar reciprocal rsqrt sqrt square"

_POINTWISE = """
addcdiv addcmul complex copysign floor_divide fmod glu_jvp isfinite isinf isnan lerp logical_and logical_not logical_or
nan_to_num polar pow remainder special_erf special_expit threshold xlogy
"""

_BY_ELEMENT = OpRule(pointwise, zeros=ELEMENTWISE)
_ACTIVATION = attrs.evolve(_BY_ELEMENT, like=_like_only_tensor)
_ARITHMETIC = attrs.evolve(_BY_ELEMENT, like=_like_operands)
_ADD = attrs.evolve(
    _ARITHMETIC, ties=add, scaling=Scaling.SUM, factors="alpha", adds=Addition("self", "other", "alpha")
)

RULES: Mapping[str | torch.Tag, Rule] = {
    torch.Tag.pointwise: _BY_ELEMENT,
    **aten(_SAME, like_first),
    "aten::full_like": OpRule(
        filled, scaling=Scaling.NUMBERS, factors="fill_value", zeros=filled_with_zero, positions="self"
    ),
    "aten::ones_like": OpRule(filled, scaling=Scaling.NUMBERS, positions="self"),
    **aten(_POINTWISE, _BY_ELEMENT),
    **aten(_ACTIVATIONS, _ACTIVATION),
    **aten(_FUNCTIONS, _ACTIVATION),
    **aten(_HOMOGENEOUS, attrs.evolve(_ACTIVATION, scaling=Scaling.SUM)),
    **aten(_COPIES, OpRule(copied, scaling=Scaling.MOVED, zeros=zeros_of_first, positions="self")),
    "aten::to.dtype": OpRule(
        copied, like=_like_converted, scaling=Scaling.MOVED, zeros=zeros_of_first, positions="self"
    ),
    "aten::empty_like": OpRule(like_first, scaling=Scaling.ZEROS, zeros=always_zero, positions="self"),
    "aten::zero": OpRule(like_first, scaling=Scaling.ZEROS, zeros=always_zero),
    **aten(_NEGATIONS, attrs.evolve(_ACTIVATION, scaling=Scaling.SUM)),
    **aten(_SUMS, attrs.evolve(_BY_ELEMENT, scaling=Scaling.SUM)),
    **aten(_SELECTIONS, attrs.evolve(_BY_ELEMENT, scaling=Scaling.SUM)),
    **aten(_POWERS, attrs.evolve(_ACTIVATION, scaling=Scaling.POWER)),
    **aten(_QUOTIENTS, attrs.evolve(_BY_ELEMENT, scaling=Scaling.QUOTIENT, factors="other")),
    "aten::fill": OpRule(like_first, zeros=filled_with_zero),
    "aten::zeros_like": OpRule(filled, scaling=Scaling.ZEROS, zeros=always_zero, positions="self"),
    "aten::multiply": attrs.evolve(_BY_ELEMENT, scaling=Scaling.PRODUCT, factors="other"),
    **aten("mul.Tensor mul_.Tensor", attrs.evolve(_ARITHMETIC, scaling=Scaling.PRODUCT, factors="other")),
    "aten::sub.Tensor": attrs.evolve(_ARITHMETIC, scaling=Scaling.SUM, factors="alpha"),
    **aten("add.Tensor add_.Tensor", _ADD),
    "aten::dropout": OpRule(like_first, like=_like_only_tensor, scaling=Scaling.PRODUCT),
    "aten::native_dropout": OpRule(dropout_with_mask, zeros=zeros_of_first),
    **aten("softmax _softmax log_softmax _log_softmax _safe_softmax", OpRule(softmax, like=_like_softmax)),
    **aten("flip roll", OpRule(along_dims, scaling=Scaling.MOVED)),
    **aten("triu tril", OpRule(last_two, zeros=zeros_of_first)),
    "aten::copy_": OpRule(copy_into, zeros=zeros_of_source, numbers="self"),
    "aten::copy": OpRule(copy_into, zeros=zeros_of_source),
    "aten::isin": among,
    "aten::prelu": OpRule(prelu, zeros=zeros_of_first),
    "aten::_prelu_kernel": _BY_ELEMENT,
}

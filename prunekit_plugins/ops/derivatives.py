"""Operations that autograd runs: a forward that differentiates (a force field) is recorded with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.plugin import (
    ELEMENTWISE,
    Axis,
    AxisMismatchError,
    OpCall,
    OpRule,
    ReasonKind,
    Role,
    Rule,
    TensorArgument,
    Verb,
)
from prunekit_plugins.ops.names import aten
from prunekit_plugins.ops.pointwise import pointwise


def select_backward(call: OpCall) -> list[Axis]:
    """Zeros of the size of what a position was selected from, but there."""
    gradient: TensorArgument = call["grad_output"]
    sizes, dim = call["input_sizes"], call["dim"] % len(call["input_sizes"])
    result = list(gradient.axes)
    result.insert(dim, call.fresh(sizes[dim], "one position of it is selected"))
    for position, axis in enumerate(result):
        call.expect("input_sizes", [axis], position)
    return result


def slice_backward(call: OpCall) -> list[Axis]:
    """Zeros of the size of what was sliced, but there."""
    gradient: TensorArgument = call["grad_output"]
    sizes, dim = call["input_sizes"], call["dim"] % gradient.ndim
    result = list(gradient.axes)
    if sizes[dim] != gradient.shape[dim]:
        call.pin([gradient.axes[dim]], "a slice of it was taken")
        result[dim] = call.fresh(sizes[dim], "a slice of it was taken")
    for position, axis in enumerate(result):
        call.expect("input_sizes", [axis], position)
    return result


def softmax_backward(call: OpCall) -> list[Axis]:
    """Sums the gradient over the dim that the softmax was taken along."""
    gradient: TensorArgument = call["grad_output"]
    output: TensorArgument = call["output"]
    result = [call.tie(mine, theirs) for mine, theirs in zip(gradient.axes, output.axes, strict=True)]
    call.whole(result[call["dim"]], Verb.MIX)
    return result


def layer_norm_backward(call: OpCall) -> list[list[Axis]]:
    """The gradients of the input, the weight and the bias, as far as they are wanted."""
    gradient: TensorArgument = call["grad_out"]
    source: TensorArgument = call["input"]
    result = [call.tie(mine, theirs) for mine, theirs in zip(gradient.axes, source.axes, strict=True)]
    normalized = result[source.ndim - len(call["normalized_shape"]) :]
    for position, axis in enumerate(normalized):
        call.whole(axis, Verb.MIX)
        call.expect("normalized_shape", [axis], position)
    for name in ("weight", "bias"):
        parameter = call.get(name)
        for dim, axis in enumerate(normalized if parameter is not None else ()):
            call.tie(axis, parameter.axes[dim])
            call.role(parameter, dim, Role.ALONG)
    lead = result[: source.ndim - len(normalized)]
    for statistic in (call["mean"], call["rstd"]):
        for dim, axis in enumerate(lead):
            call.tie(axis, statistic.axes[dim])
    for dim, axis in enumerate(lead if any(call["output_mask"][1:]) else ()):
        call.whole(axis, Verb.CONTRACT, operands=((gradient, dim), (source, dim)))
    made = [result, list(normalized), list(normalized)]
    return [axes for axes, wanted in zip(made, call["output_mask"], strict=True) if wanted]


def convolution_backward(call: OpCall) -> list[list[Axis]]:
    """The gradients of the input, the weight and the bias, as far as they are wanted."""
    gradient: TensorArgument = call["grad_output"]
    source: TensorArgument = call["input"]
    weight: TensorArgument = call["weight"]
    if call["groups"] != 1:
        raise AxisMismatchError("the backward of a convolution in groups")
    into, out = (0, 1) if call["transposed"] else (1, 0)
    call.tie(source.axes[1], weight.axes[into])
    call.tie(gradient.axes[1], weight.axes[out])
    call.role(weight, into, Role.IN)
    call.role(weight, out, Role.OUT)
    call.pin(weight.axes[2:], "a kernel dim", kind=ReasonKind.KERNEL)
    call.pin([*source.axes[2:], *gradient.axes[2:]], "a spatial dim")
    batch = call.tie(source.axes[0], gradient.axes[0])
    if any(call["output_mask"][1:]):
        call.whole(batch, Verb.CONTRACT, operands=((source, 0), (gradient, 0)))
    call.whole(weight.axes[out], Verb.CONTRACT, operands=((gradient, 1), (weight, out)))
    if call["bias_sizes"]:
        call.expect("bias_sizes", [weight.axes[out]], 0)
    made = [list(source.axes), list(weight.axes), [weight.axes[out]]]
    return [axes for axes, wanted in zip(made, call["output_mask"], strict=True) if wanted]


_ACTIVATIONS = """
elu_backward hardswish_backward leaky_relu_backward log_sigmoid_backward mish_backward softplus_backward
"""

RULES: Mapping[str | torch.Tag, Rule] = {
    **aten(_ACTIVATIONS, OpRule(pointwise, zeros=ELEMENTWISE)),
    "aten::select_backward": select_backward,
    "aten::slice_backward": slice_backward,
    **aten("_softmax_backward_data _log_softmax_backward_data", softmax_backward),
    "aten::native_layer_norm_backward": layer_norm_backward,
    "aten::convolution_backward": convolution_backward,
}

"""Operations of ``torchvision.ops``; named only, so that torchvision need not be installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunekit.plugin import Axis, Kind, OpCall, OpRule, ReasonKind, Role, Rule, TensorArgument, split
from prunekit_plugins.ops.pointwise import zeros_of_first


def nms(call: OpCall) -> list[Axis]:
    """Returns the numbers of the boxes that stay."""
    for tensor in call.tensors():
        call.pin(tensor.axes, "boxes are told apart by position")
    return [call.fresh(size, "boxes that stay") for size in call.shape]


def _picture(call: OpCall) -> tuple[TensorArgument, TensorArgument]:
    """Pins what regions address: the number of the picture, and its pixels."""
    source: TensorArgument = call["input"]
    rois: TensorArgument = call["rois"]
    call.pin([source.axes[0], *source.axes[2:], rois.axes[1]], "addressed by regions")
    return source, rois


def pool_regions(call: OpCall) -> Sequence[Sequence[Axis]]:
    """``roi_align`` and ``roi_pool``: channels pass through, one row for each region."""
    source, rois = _picture(call)
    return [
        [rois.axes[0], source.axes[1], *(call.fresh(size, "a spatial dim") for size in shape[2:])]
        for shape in call.shapes
    ]


def pool_parts(call: OpCall) -> Sequence[Sequence[Axis]]:
    """Position-sensitive pooling: every cell of a region reads channels of its own, ``C x cells`` become ``C``."""
    source, rois = _picture(call)
    channels = call.shape[1]
    units, cells = split(source.axes[1], channels, source.shape[1] // channels)
    call.pin(cells, "belongs to one cell of a region")
    return [[rois.axes[0], units, *(call.fresh(size, "a spatial dim") for size in shape[2:])] for shape in call.shapes]


def deform_conv2d(call: OpCall) -> list[Axis]:
    """A convolution that looks where offsets say; offsets belong to kernel positions, which stay."""
    source: TensorArgument = call["input"]
    weight: TensorArgument = call["weight"]
    offset: TensorArgument = call["offset"]
    mask: TensorArgument = call["mask"]
    bias: TensorArgument = call["bias"]
    groups: int = call["groups"]
    aimed: int = call["offset_groups"]
    call.tie(source.axes[0], offset.axes[0])
    call.pin(offset.axes[1:], "belongs to kernel positions")
    if call["use_mask"]:
        call.tie(source.axes[0], mask.axes[0])
        call.pin(mask.axes[1:], "belongs to kernel positions")
    if aimed > 1:
        places, _ = split(source.axes[1], aimed, source.shape[1] // aimed)
        call.pin(places, "each part of the channels has offsets of its own")
    if groups > 1:
        outer, inner = split(source.axes[1], groups, source.shape[1] // groups)
        rows, _ = split(weight.axes[0], groups, weight.shape[0] // groups)
        call.tie(outer, rows)
        call.tie(inner, weight.axes[1])
        call.kind(rows, Kind.CONV_GROUPS)
        call.pin(rows, "its number of groups is fixed")
    else:
        call.tie(source.axes[1], weight.axes[1])
    call.role(weight, 0, Role.OUT)
    call.role(weight, 1, Role.IN)
    call.kind(weight.axes[0], Kind.CHANNELS)
    call.tie(weight.axes[0], bias.axes[0])
    call.role(bias, 0, Role.ALONG)
    call.pin(weight.axes[2:], "a kernel dim", kind=ReasonKind.KERNEL)
    call.pin(source.axes[2:], "a spatial dim")
    return [source.axes[0], weight.axes[0], *(call.fresh(size, "a spatial dim") for size in call.shape[2:])]


RULES: Mapping[str | torch.Tag, Rule] = {
    "torchvision::nms": nms,
    "torchvision::roi_align": OpRule(pool_regions, zeros=zeros_of_first),
    "torchvision::roi_pool": OpRule(pool_regions, zeros=zeros_of_first),
    "torchvision::ps_roi_align": OpRule(pool_parts, zeros=zeros_of_first),
    "torchvision::ps_roi_pool": OpRule(pool_parts, zeros=zeros_of_first),
    "torchvision::deform_conv2d": deform_conv2d,
}

"""How linear layers, matrix products and convolutions read: the columns that a weight is multiplied by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.plugin import Reading

Arguments = Mapping[str, Any]


def _last(values: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """``[..., n]`` to ``[1, samples, n]``."""
    return values.reshape(1, -1, values.shape[-1])


def _matrix(name: str) -> Callable[[Arguments], int]:
    """One group if the weight is a matrix (not one per batch entry), and nothing is scaled on the way."""

    def groups(arguments: Arguments) -> int:
        plain = arguments.get("alpha", 1) == 1 and arguments.get("beta", 1) == 1
        return 1 if arguments[name].dim() == 2 and plain else 0

    return groups


LINEAR = Reading("input", "weight", "bias", _last, _last, _matrix("weight"), inputs_first=False, channels_last=True)
"""``y = x W^T + b`` with ``W [out, in]``."""
PRODUCT = Reading("self", "other", "", _last, _last, _matrix("other"), inputs_first=True, channels_last=True)
"""``y = x W`` with ``W [in, out]``."""
PLAIN_PRODUCT = Reading("self", "mat2", "", _last, _last, _matrix("mat2"), inputs_first=True, channels_last=True)
ADDED_PRODUCT = Reading("mat1", "mat2", "self", _last, _last, _matrix("mat2"), inputs_first=True, channels_last=True)
"""``y = x W + b``."""


def _sizes(value: Sequence[int] | int, dims: int) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * dims if len(listed) == 1 else listed


def _padding(arguments: Arguments, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding as `torch.nn.functional.pad` takes it: the last dim first, before and after."""
    given = arguments["padding"]
    both: list[tuple[int, int]]
    if given == "same":
        total = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
        both = [(all_ // 2, all_ - all_ // 2) for all_ in total]
    elif given == "valid":
        both = [(0, 0)] * len(kernel)
    else:
        both = [(size, size) for size in _sizes(given, len(kernel))]
    return [size for pair in reversed(both) for size in pair]


def _columns(
    source: torch.Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int], groups: int
) -> torch.Tensor:
    """What a kernel covers at each of its places.

    Args:
        source: Tensor ``[batch, channels, ...]``, padded.
        kernel: Sizes of the kernel.
        dilation: Its gaps.
        stride: Its steps.
        groups: Number of groups.

    Returns:
        Tensor ``[groups, batch x places, channels / groups x kernel]``.
    """
    windows = source
    for dim, (size, gap, step) in enumerate(zip(kernel, dilation, stride, strict=True)):
        windows = windows.unfold(2 + dim, gap * (size - 1) + 1, step)[..., ::gap]
    batch, channels = windows.shape[:2]
    places = math.prod(windows.shape[2 : 2 + len(kernel)])
    width = math.prod(kernel)
    blocks = windows.reshape(batch, groups, channels // groups, places, width)
    return blocks.permute(1, 0, 3, 2, 4).reshape(groups, batch * places, channels // groups * width)


def _covered(source: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """The columns of a convolution."""
    kernel = arguments["weight"].shape[2:]
    dilation, stride = _sizes(arguments["dilation"], len(kernel)), _sizes(arguments["stride"], len(kernel))
    padded = nn.functional.pad(source, _padding(arguments, kernel, dilation))
    return _columns(padded, kernel, dilation, stride, arguments["groups"])


def _uncovered(source: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """The columns of a transposed convolution: a plain one, with a turned kernel, over the spread out source."""
    kernel = arguments["weight"].shape[2:]
    dims = len(kernel)
    dilation, stride = _sizes(arguments["dilation"], dims), _sizes(arguments["stride"], dims)
    padding, extra = _sizes(arguments["padding"], dims), _sizes(arguments["output_padding"], dims)
    spread = source
    if any(step > 1 for step in stride):
        shape = [(size - 1) * step + 1 for size, step in zip(source.shape[2:], stride, strict=True)]
        spread = source.new_zeros([*source.shape[:2], *shape])
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = source
    reach = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
    both = [(far - pad, far - pad + more) for far, pad, more in zip(reach, padding, extra, strict=True)]
    padded = nn.functional.pad(spread, [size for pair in reversed(both) for size in pair])
    groups = arguments["groups"]
    columns = _columns(padded, kernel, dilation, [1] * dims, groups)
    turned = columns.reshape(groups, columns.shape[1], -1, math.prod(kernel)).flip(3)
    return turned.reshape(columns.shape)


def _places(output: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """``[batch, groups x n, ...]`` to ``[groups, batch x places, n]``."""
    groups = arguments["groups"]
    blocks = output.reshape(output.shape[0], groups, output.shape[1] // groups, -1)
    return blocks.permute(1, 0, 3, 2).reshape(groups, -1, blocks.shape[2])


def _groups(arguments: Arguments) -> int:
    groups: int = arguments["groups"]
    return groups


CONVOLUTION = Reading("input", "weight", "bias", _covered, _places, _groups, inputs_first=False, channels_last=False)
TRANSPOSED = Reading("input", "weight", "bias", _uncovered, _places, _groups, inputs_first=True, channels_last=False)

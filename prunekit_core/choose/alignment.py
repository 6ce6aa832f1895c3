"""Which sizes hardware likes: the multiples that ``align="auto"`` stands for."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from prunekit_core.arguments import is_count
from prunekit_core.errors import ArgumentError

VECTOR_BYTES = {"AVX512": 64, "AVX2": 32, "SVE256": 32, "ZVECTOR": 16, "DEFAULT": 16}
"""Width of a vector register by what ``torch.backends.cpu.get_cpu_capability()`` answers.

oneDNN lays channels out in blocks of that many float32 numbers (nChw8c with AVX2, nChw16c with AVX-512: its developer
guide, "Understanding Memory Formats") and pads the last block with zeros, which are multiplied like any other number.
"""

TENSOR_CORE_BYTES = 16
"""Tensor cores are used efficiently where sizes are multiples of 16 bytes: 8 numbers in half precision, 4 in TF32
(NVIDIA, "Matrix Multiplication Background User's Guide", table on requirements of cuBLAS and cuDNN)."""


@attrs.frozen
class Alignment:
    """A multiple and where it comes from.

    Attributes:
        multiple: Sizes are to be multiples of it.
        why: Device, dtype and unit, in words.
    """

    multiple: int
    why: str


def auto_alignment(model: nn.Module) -> Alignment:
    """Returns the multiple for the device and dtype of a model's first floating-point parameter.

    Raises:
        ArgumentError: Nothing is known about its device, or it has no such parameter.
    """
    parameter = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    if parameter is None:
        raise ArgumentError('align="auto" needs a model with floating-point parameters.')
    device, dtype = parameter.device.type, str(parameter.dtype).removeprefix("torch.")
    if device == "cpu":
        unit = torch.backends.cpu.get_cpu_capability()
        width, named = VECTOR_BYTES.get(unit, 16), f"vector registers of {VECTOR_BYTES.get(unit, 16)} bytes, {unit}"
    elif device == "cuda":
        width, named = TENSOR_CORE_BYTES, f"tensor cores take {TENSOR_CORE_BYTES} bytes"
    else:
        raise ArgumentError(
            'align="auto" knows nothing about this device.',
            where=device,
            why="it knows the vector registers of CPUs and the tensor cores of CUDA devices",
            hint="give the multiple yourself: round_to=8",
        )
    return Alignment(max(1, width // parameter.element_size()), f"{dtype} on {device}: {named}")


def multiple_of(round_to: int | None, align: str | None, model: nn.Module) -> tuple[int | None, list[str]]:
    """Returns the multiple that sizes are kept at, if any, and a note where it was found out.

    Args:
        round_to: The multiple itself.
        align: ``"auto"`` to find it out.
        model: The model.

    Raises:
        ArgumentError: One of them is wrong, both are given, or nothing is known.
    """
    if round_to is not None and not is_count(round_to):
        raise ArgumentError("round_to must be a positive integer.", why=f"got {round_to!r}")
    if align is None:
        return round_to, []
    if align != "auto":
        raise ArgumentError('align must be "auto".', why=f"got {align!r}", hint="round_to takes a number")
    if round_to is not None:
        raise ArgumentError("Give round_to or align, not both.")
    found = auto_alignment(model)
    return found.multiple, [f"sizes are multiples of {found.multiple} ({found.why})"]

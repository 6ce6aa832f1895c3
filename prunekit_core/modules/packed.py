"""Weights that are stored in another form than one number per element: quantised, packed, in objects of a library."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunekit_core.errors import UnsupportedModelError
from prunekit_core.torch_private.objects import script_class

QUANTISE_LATER = {"bitsandbytes": "which quantises it once it is moved to a device, or as it runs"}
"""Packages whose parameters hold real numbers until then, to what becomes of these."""


def check_unpacked(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises `UnsupportedModelError` if a parameter or buffer doesn't hold its values element by element.

    Quantised tensors, subclasses of tensors that are made of other tensors, and subclasses of parameters whose numbers
    are integers (packed codes) are such, and so are parameters that will be (see `QUANTISE_LATER`).

    Args:
        tensors: Parameters and buffers by name; those that lie on several processes are no matter of this.
    """
    for name, tensor in tensors.items():
        kind = type(tensor)
        coded = isinstance(tensor, nn.Parameter) and kind is not nn.Parameter
        integers = not (tensor.is_floating_point() or tensor.is_complex())
        if tensor.is_quantized or hasattr(kind, "__tensor_flatten__") or (coded and integers):
            raise _refusal(name, f"it is a {kind.__name__} of {tensor.dtype}")
        package = kind.__module__.partition(".")[0]
        if coded and package in QUANTISE_LATER:
            raise _refusal(name, f"it is a {kind.__name__} of {package}, {QUANTISE_LATER[package]}")


def check_no_packed_objects(modules: Mapping[str, nn.Module]) -> None:
    """Raises `UnsupportedModelError` if a module keeps its weights in an object that only its kernels can read."""
    for path, module in modules.items():
        if type(module).__module__.startswith("torch.nn.modules."):  # most are, and hold tensors only
            continue
        for name, value in vars(module).items():
            if isinstance(value, torch.ScriptObject):
                raise _refusal(f"{path}.{name}" if path else name, f"it is a {script_class(value)}")


def _refusal(where: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "The model's weights are quantised or packed.",
        where=where,
        why=f"{why}: units can't be cut out of it",
        hint="prune the model before it is quantised, then quantise what comes out, which is an ordinary module",
    )

"""PyTorch's transformer layers have a fused path that reads the weights of the modules in them and calls none of these.

It runs in eval mode without gradients, where no recording sees it. It stays off where one of these modules is another
one than PyTorch expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

_SWITCHES: Mapping[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),  # its layers would be given nested tensors, for the fused path
}
"""By class: the attribute that its forward asks before it takes the fused path, with the value that says no."""


def fused_off(modules: Mapping[str, nn.Module], exchanged: Collection[str]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yields what has to be set so that no fused path expects modules that are exchanged.

    Args:
        modules: The modules of a model by path.
        exchanged: Paths of those that others stand in for.

    Yields:
        A module, the name of an attribute that it has, and its value.
    """
    for path, module in modules.items():
        for kind, (attribute, value) in _SWITCHES.items():
            if isinstance(module, kind) and attribute in vars(module) and _is_within(path, exchanged):
                yield module, attribute, value


def _is_within(path: str, others: Collection[str]) -> bool:
    """Whether some of other modules are in one."""
    return any(other != path and (not path or other.startswith(f"{path}.")) for other in others)

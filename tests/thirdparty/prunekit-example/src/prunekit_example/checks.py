"""How what needs a layer, tensors or a file to be tried on is proven."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunekit import Registry
from prunekit_example.layers import ScaledSwish, SoftClip
from prunekit_example.operations import swish
from prunekit_example.repairing import SCALE, LabelledScale
from prunekit_example.storing import StateDictFile, write


def _check_swish(registry: Registry) -> None:
    from prunekit.testing import check_rule, sample

    check_rule(lambda x: swish(x, 1.5), [sample(3, 4)], registry=registry)


def _check_layer(registry: Registry) -> None:
    from prunekit.testing import check_layer_type

    check_layer_type(ScaledSwish(5, 6), torch.randn(4, 5), registry=registry)


def _check_clip(registry: Registry) -> None:
    from prunekit.testing import check_layer_type

    check_layer_type(SoftClip(6), torch.randn(4, 6), registry=registry)


def _check_scale(registry: Registry) -> None:
    from prunekit.testing import check_replacement

    check_replacement(SCALE, LabelledScale(6), torch.randn(4, 6), registry=registry)


def _check_weights(registry: Registry) -> None:
    from prunekit.testing import check_weights

    check_weights(StateDictFile, write, suffix="example", registry=registry)


CHECKS: Mapping[tuple[str, Any], Callable[..., None]] = {
    ("prunekit_op_rules", "prunekit_example::swish"): _check_swish,
    ("prunekit_layer_types", ScaledSwish): _check_layer,
    ("prunekit_layer_types", SoftClip): _check_clip,
    ("prunekit_replacements", "example_scale"): _check_scale,
    ("prunekit_weights", "example"): _check_weights,
}

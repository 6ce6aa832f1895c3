"""Every public name of Torch-Pruning 1.6.1 is there and takes the same arguments.

The list was made once, by introspection, from the installed package: names, kinds, parameter names.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import prunekit as pk
import prunekit_plugins.compat.torch_pruning as tp

NAMES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("torch_pruning_1_6_1.json").read_text())["names"]


def find(name: str) -> Any:
    found: Any = tp
    for part in name.split("."):
        if not hasattr(found, part) and isinstance(found, ModuleType):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def check_parameters(name: str, function: Any, wanted: list[str] | None) -> None:
    if wanted is None:
        return
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and any(
        p.kind is p.VAR_POSITIONAL for p in parameters.values()
    ):
        return
    named = [p.name for p in parameters.values() if p.name not in ("self", "cls")]
    missing = [parameter for parameter in wanted if parameter not in named]
    assert not missing, f"{name} doesn't take {missing}; it takes {named}"
    assert [n for n in named if n in wanted] == wanted, f"{name} takes {named}, not in the order {wanted}"
    assert named[: len(wanted)] == wanted, f"{name}: {named} have others before {wanted}"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there_and_takes_the_same_arguments(name: str) -> None:
    wanted, found = NAMES[name], find(name)
    if wanted["kind"] == "module":
        assert isinstance(found, ModuleType)
    elif wanted["kind"] == "enum":
        assert {member.name: int(member) for member in found} == wanted["values"]
    elif wanted["kind"] == "class":
        assert isinstance(found, type)
        check_parameters(name, found, wanted.get("parameters"))
        for member, parameters in wanted.get("members", {}).items():
            assert hasattr(found, member), f"{name}.{member}"
            if parameters is not None:
                check_parameters(f"{name}.{member}", getattr(found, member), parameters)
    elif wanted["kind"] == "function":
        assert callable(found)
        check_parameters(name, found, wanted["parameters"])


def test_names_of_earlier_versions() -> None:
    assert tp.importance.GroupNormImportance is tp.importance.GroupMagnitudeImportance


def test_modules_are_the_same_under_both_names() -> None:
    assert tp.function is tp.pruner.function
    assert tp.importance is tp.pruner.importance
    assert tp.scheduler is tp.pruner.algorithms.scheduler
    assert tp.GroupNormPruner is tp.pruner.GroupNormPruner is not tp.function.GroupNormPruner


UNAVAILABLE = [
    lambda: tp.dependency.index_mapping.update_concat_index_mapping(None, None),
    lambda: tp.dependency.shape_infer.infer_channels_between(None, None, None),
    lambda: tp.utils.op_counter.conv_flops_counter_hook,
    lambda: tp.utils.op_counter.MODULES_MAPPING,
    lambda: tp.dependency.Group(),
    lambda: tp.ops.ConcatPruner().prune_out_channels(None, [0]),
    lambda: tp.ops.SplitPruner()(None, [0]),
    lambda: tp.function.LayernormPruner(pruning_dim=0),
    lambda: tp.importance.OBDCImportance().adjust_fisher(None, None),
]


@pytest.mark.parametrize("call", UNAVAILABLE, ids=range(len(UNAVAILABLE)))
def test_what_can_not_work_says_what_to_use(call: Any) -> None:
    with pytest.raises(tp.UnavailableError) as caught:
        call()
    assert isinstance(caught.value, pk.PrunekitError)
    assert caught.value.hint
    assert caught.value.why


def test_kinds_of_layers() -> None:
    from torch import nn

    kinds = tp.ops.OPTYPE
    for layer, kind in {
        nn.Conv2d(4, 4, 3): kinds.CONV,
        nn.Conv2d(4, 4, 3, groups=4): kinds.DEPTHWISE_CONV,
        nn.ConvTranspose1d(2, 4, 3): kinds.CONV,
        nn.BatchNorm2d(4): kinds.BN,
        nn.InstanceNorm2d(4): kinds.IN,
        nn.LSTM(2, 3): kinds.LSTM,
        nn.ReLU(): kinds.ELEMENTWISE,
        nn.MultiheadAttention(4, 2): kinds.MHA,
    }.items():
        assert tp.utils.module2type(layer) is kind
        if kind is not kinds.ELEMENTWISE:
            assert isinstance(layer, tp.ops.type2class(kind))
            assert tp.PrunerBox[kind].TARGET_MODULES is not None
    assert tp.ops.type2class(kinds.CONCAT) is not tp.ops.type2class(kinds.SPLIT)

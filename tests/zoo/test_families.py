"""A handful of every family of the sweep, as the sweep treats them: half of the units go, nothing is told, it is exact.

The whole sweep is ``benchmarks/zoo.py``.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import RandomImportance

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
zoo_awkward = importlib.import_module("zoo_awkward")
zoo_timm = importlib.import_module("zoo_timm")
zoo_transformers = importlib.import_module("zoo_transformers")
sys.path.remove(BENCHMARKS)

NEEDS = {"einops": "einops"}
LEFT_OUT = {
    "weight_norm": "zeroing a unit divides by its norm, which is zero then; test_wounds.py has another check",
}
SMALL = [
    (family, name)
    for family in ("recurrent", "awkward")
    for name in zoo_awkward.MODELS[family]
    if name not in LEFT_OUT and not name.endswith("_stacked")
]

TRANSFORMERS: Mapping[str, dict[str, int]] = {
    "llama": {
        "model.embed_tokens#stream": 64,
        "model.layers.0.self_attn.q_proj#queries_per_head": 2,
        "model.layers.0.mlp.gate_proj": 128,
        "model.layers.1.self_attn.q_proj#queries_per_head": 2,
        "model.layers.1.mlp.gate_proj": 128,
    },
    "llama+no_cache": {
        "model.embed_tokens#stream": 64,
        "model.layers.0.self_attn.q_proj#heads": 2,
        "model.layers.0.self_attn.q_proj#queries_per_head": 2,
        "model.layers.0.self_attn.q_proj#head_dim": 8,
        "model.layers.0.self_attn.v_proj#head_dim": 16,
        "model.layers.0.mlp.gate_proj": 128,
        "model.layers.1.self_attn.q_proj#heads": 2,
        "model.layers.1.self_attn.q_proj#queries_per_head": 2,
        "model.layers.1.self_attn.v_proj#head_dim": 16,
        "model.layers.1.mlp.gate_proj": 128,
    },
    "gpt2": {
        "transformer.wte#stream": 64,
        "transformer.h.0.mlp.c_fc#stream": 256,
        "transformer.h.1.mlp.c_fc#stream": 256,
    },
    "mixtral+eager": {},
    "phi3+no_cache": {},
    "t5": {},
    "clip": {},
    "segformer": {},
}
"""Names to the groups that must be found; empty: only the cut is checked."""

TIMM = {
    "resnet18": 0.30,
    "vit_tiny_patch16_224": 0.30,
    "ghostnet_050": 0.42,
    "mobilevit_xxs": 0.36,
    "efficientvit_b0": 0.40,
    "resnest14d": 0.34,
    "mambaout_femto": 0.34,
}
"""Names to the largest fraction of parameters that may be left."""


def cut_in_half(model: nn.Module, inputs: Any) -> pk.PruneResult:
    """Prunes a model, and compares it with the masked original in eval mode; returns the result."""
    original = copy.deepcopy(model)
    result = pk.prune(model, inputs, importance=RandomImportance())
    assert not any(note.startswith("a constant of") for note in result.report.notes)
    assert not any("no rule" in gap for gap in result.report.not_understood)
    check = pk.check_exact(original, model, result.plan, inputs)
    assert check.exact, str(check)
    return result


@pytest.mark.parametrize(("family", "name"), SMALL, ids=lambda value: value)
def test_small_models(family: str, name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    torch.manual_seed(0)
    model, inputs = zoo_awkward.MODELS[family][name]()
    model.eval()
    result = cut_in_half(model, inputs)
    assert result.preview.params_after < 0.6 * result.preview.params_before


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.filterwarnings("ignore")
def test_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = zoo_transformers.build(name)
    model.eval()
    expected = TRANSFORMERS[name]
    if expected:
        graph = pk.DependencyGraph().build_dependency(model, inputs)
        assert {group.name: group.size for group in graph.groups()} == expected
    cut_in_half(model, inputs)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model, inputs = zoo_timm.build(name)
    result = cut_in_half(model.eval(), inputs)
    assert result.preview.params_after <= TIMM[name] * result.preview.params_before

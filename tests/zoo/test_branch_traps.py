"""Models in which it is easy to take a branch out wrongly: each is exact, or refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import torch

import prunekit as pk
from tests.zoo.test_branches import IDS, transformer

LAYER = ["model.layers.1.self_attn", "model.layers.1.mlp"]


def lengths(model: Any, **flags: bool) -> dict[str, int]:
    outputs = model(input_ids=IDS, use_cache=False, **flags)
    return {name: len(outputs[name]) for name in ("hidden_states", "attentions") if name in outputs}


def test_lists_of_outputs_are_those_of_the_layers_that_are_left() -> None:
    """What the recording wasn't asked for has no entry of a layer that is gone, as in a model that never had it."""
    model = transformer("llama", attn_implementation="eager")
    flags = {"output_hidden_states": True, "output_attentions": True}
    graph = pk.Graph.of(model, {"input_ids": IDS})
    attention, layer = (graph.plan_without(names).apply(copy.deepcopy(model)) for names in (LAYER[:1], LAYER))
    assert lengths(model, **flags) == {"hidden_states": 4, "attentions": 3}  # it has hooks from here on
    assert lengths(attention, **flags) == {"hidden_states": 4, "attentions": 2}
    assert lengths(layer, **flags) == {"hidden_states": 3, "attentions": 2}
    whole, left = (one(input_ids=IDS, output_hidden_states=True).hidden_states for one in (model, layer))
    assert torch.equal(left[1], whole[1])


def test_lists_of_outputs_stay_whole_where_they_are_recorded() -> None:
    model, inputs = transformer("llama").double(), {"input_ids": IDS, "output_hidden_states": True}
    plan = pk.Graph.of(model, inputs).plan_without(LAYER)
    small = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, inputs)
    states = small(**inputs).hidden_states
    assert len(states) == 4
    assert torch.equal(states[1], states[2])

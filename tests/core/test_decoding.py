"""Caches: a branch goes only if the calls that are given what earlier ones returned are right without it as well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.branches.decoding import DECODING

X = torch.randn(2, 5, 8)


class Store:
    """Keys that were computed so far, by layer."""

    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}

    def length(self) -> int:
        return self.keys[0].shape[1] if 0 in self.keys else 0

    def update(self, layer: int, keys: torch.Tensor) -> torch.Tensor:
        self.keys[layer] = torch.cat([self.keys[layer], keys], 1) if layer in self.keys else keys
        return self.keys[layer]


class Mix(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.key = layer, nn.Linear(8, 8)
        self.out = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: torch.Tensor, store: Store | None) -> torch.Tensor:
        keys = self.key(x)
        keys = keys if store is None else store.update(self.layer, keys)
        return self.out(torch.softmax(x @ keys.mT, -1) @ keys)


class Remembers(nn.Module):
    """Positions go on where the cache of the first layer ends."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(20, 8))
        self.layers = nn.ModuleList(Mix(layer) for layer in range(3))

    def mixed(self, x: torch.Tensor, store: Store | None) -> torch.Tensor:
        start = 0 if store is None else store.length()
        x = x + self.positions[start : start + x.shape[1]]
        for layer in self.layers:
            x = x + layer(x, store)
        return x


class Always(Remembers):
    def forward(self, x: torch.Tensor, store: Store | None = None) -> tuple[torch.Tensor, Store]:
        store = Store() if store is None else store
        return self.mixed(x, store), store


class Switched(Remembers):
    def forward(self, x: torch.Tensor, store: Store | None = None, use_cache: bool = False) -> dict[str, Any]:
        store = Store() if use_cache and store is None else store
        return {"y": self.mixed(x, store), "store": store}


class Once(Remembers):
    """What it returns can't be handed back."""

    def forward(self, x: torch.Tensor, store: Store | None = None) -> dict[str, Any]:
        if store is not None:
            raise ValueError("one call for each cache")
        store = Store()
        return {"y": self.mixed(x, store), "store": store}


class Lists(Remembers):
    """Returns a list of tensors that no argument takes."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        y = self.mixed(x if scale is None else x * scale, None)
        return y, [y.mean(1), y.amax(1)]


def only_values(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model(x)[0]
    return value


def ready(kind: type[Remembers]) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    return kind().double().eval(), X.double()


CASES: list[tuple[type[Remembers], Callable[..., Any] | None, Any]] = [
    (Always, None, {}),
    (Always, only_values, {}),
    (Switched, None, {}),
    (Switched, None, {"use_cache": False}),
    (Switched, None, {"use_cache": True}),
]


@pytest.mark.parametrize(("kind", "forward_fn", "options"), CASES)
def test_what_a_cache_is_measured_by_stays_and_the_rest_decodes_right(
    kind: type[Remembers], forward_fn: Any, options: Any
) -> None:
    model, x = ready(kind)
    inputs = {"x": x, **options} if options else x
    graph = pk.Graph.of(model, inputs, forward_fn=forward_fn)
    assert [recording.trace.label for recording in graph.branch_analysis.recordings] == ["eval", DECODING]
    assert [recording.trace.label for recording in graph.analysis.recordings] == ["eval"]
    assert [branch.name for branch in graph.branches()] == ["layers.0", "layers.1", "layers.2"]
    with pytest.raises(pk.RehearsalError, match=r"(?s)can't go on.*slice"):
        graph.plan_without(["layers.0"])
    plan = graph.plan_without(["layers.1", "layers.2"])
    small = plan.apply(copy.deepcopy(model))
    assert sum(p.numel() for p in small.layers.parameters()) == 284
    assert pk.check_exact(model, small, plan, inputs)
    cached = {"use_cache": True} if kind is Switched else {}
    first, second = x.split([3, 2], 1)
    one = small(first, **cached)
    later = small(second, store=list(one.values() if isinstance(one, dict) else one)[1], **cached)
    y = (later["y"] if isinstance(later, dict) else later[0])[:, -1]
    whole = small(x, **cached)
    torch.testing.assert_close(y, (whole["y"] if isinstance(whole, dict) else whole[0])[:, -1])


def test_the_naive_removal_is_right_in_one_call_and_wrong_in_the_next() -> None:
    """The layer whose cache is measured: without a second call nothing would show."""
    model, x = ready(Switched)
    plan = pk.Graph.of(model, {"x": x}).plan_without(["layers.1"])
    naive = pk.Plan.from_json(plan.to_json().replace("layers.1", "layers.0"))
    small = naive.apply(copy.deepcopy(model), any_program=True)
    with torch.no_grad():
        masked = copy.deepcopy(model)
        masked.layers[0].out[2].weight.zero_()
        masked.layers[0].out[2].bias.zero_()
        torch.testing.assert_close(small(x)["y"], masked(x)["y"])
    check = pk.check_exact(model, small, naive, {"x": x})
    assert not check
    assert pk.check_exact(model, plan.apply(copy.deepcopy(model)), plan, {"x": x})


def test_a_cache_that_cannot_be_handed_back_keeps_every_branch() -> None:
    model, x = ready(Once)
    graph = pk.Graph.of(model, x)
    why = r"returns a cache \(store\), and can't be called with it: ValueError: one call for each cache"
    assert {branch.reason for branch in graph.branches()} == {
        "the model returns a cache (store), and can't be called with it: ValueError: one call for each cache"
    }
    with pytest.raises(pk.RehearsalError, match=why):
        graph.plan_without(["layers.2.out"])


def test_lists_of_outputs_are_no_cache() -> None:
    model, x = ready(Lists)
    graph = pk.Graph.of(model, x)
    assert graph.branch_analysis is graph.analysis
    plan = graph.plan_without(["layers.0", "layers.2"])
    small = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, x)


def test_widths_that_go_with_branches_keep_what_was_chosen() -> None:
    model, x = ready(Switched)
    graph = pk.Graph.of(model, {"x": x})
    assert graph.drafts.for_branches() is graph.drafts.for_branches()
    plan = graph.plan_without(["layers.1"], {"layers.1.out.0": (0,), "layers.2.out.0": (0, 3, 5)})
    assert plan.kept == {"layers.2.out.0": (0, 3, 5)}
    small = plan.apply(copy.deepcopy(model))
    assert pk.check_exact(model, small, plan, {"x": x})


def test_masks_of_all_tokens_grow_with_them() -> None:
    from prunekit_core.program.decoding import Decoding, Later

    calls: list[dict[str, Any]] = []

    class Notes(nn.Module):
        def forward(self, **inputs: Any) -> dict[str, Any]:
            calls.append(inputs)
            return {"y": inputs["input_ids"], "cache": [inputs["input_ids"]]}

    decoding = Decoding((), (("cache", "cache"),), (Later.SAME, Later.LAST))
    ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])
    outputs = decoding.run(Notes(), {"input_ids": ids, "attention_mask": mask})
    assert [call["input_ids"].tolist() for call in calls] == [[[1, 2, 3]], [[1, 2, 3]], [[3]]]
    assert [call["attention_mask"].shape[1] for call in calls] == [3, 6, 7]
    assert calls[2]["attention_mask"].tolist() == [[0, 1, 1, 1, 1, 1, 1]]
    assert [output["cache"] for output in outputs] == [None, None, None]
    calls.clear()
    decoding.run(Notes(), {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :2]})
    assert [call["decoder_input_ids"].shape[1] for call in calls] == [2, 2, 1]
    assert [(call["input_ids"].shape[1], call["attention_mask"].shape[1]) for call in calls] == [(3, 3)] * 3


@pytest.mark.parametrize(("kind", "forward_fn", "options"), CASES)
def test_memory_holds_what_is_returned_as_a_cache_with_branches_gone_as_well(
    kind: type[Remembers], forward_fn: Any, options: Any
) -> None:
    """Whole, it is what the recording without decoding says; afterwards what a graph of the smaller model says."""
    model, x = ready(kind)
    inputs = {"x": x, **options} if options else x

    def memory(graph: pk.Graph) -> float:
        return pk.BasePruner(graph.model, inputs, forward_fn=forward_fn).plan().preview().costs["memory"][0]

    graph = pk.Graph.of(model, inputs, forward_fn=forward_fn)
    plan = graph.plan_without(["layers.1", "layers.2"])
    small = pk.Graph.of(plan.apply(copy.deepcopy(model)), inputs, forward_fn=forward_fn)
    assert plan.preview().costs["memory"] == (memory(graph), memory(small))
    assert graph.costs_without(["layers.1", "layers.2"])["memory"] == (memory(graph), memory(small))

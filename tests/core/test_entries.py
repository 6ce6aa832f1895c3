"""Layers that have lost all their branches leave their list: what counts them follows, as far as the program says."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.entries import Deletion, Entries, Recount, Shortening, from_json, to_json
from prunekit_core.modules.renaming import Renaming
from prunekit_core.rehearse.removals import draft_without
from tests.core.residual import applied_as_json
from tests.core.test_decoding import Store

X = torch.randn(2, 5, 8)


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.key, self.out = number, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        keys = store.update(self.number, self.key(x))
        return x + self.out(torch.softmax(x @ keys.mT, -1) @ keys)


class Config:
    def __init__(self, kinds: list[str]) -> None:
        self.kinds, self.layers, self.scales = kinds, len(kinds), (0.5, 1.0)


class Decoder(nn.Module):
    """What a layer is given depends on a list of the configuration; positions on the cache of the first layer."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.config, self.positions = Config(kinds), nn.Parameter(torch.randn(20, 8))
        self.layers = nn.ModuleList(Layer(number) for number in range(len(kinds)))

    def forward(self, x: torch.Tensor, store: Store | None = None) -> dict[str, Any]:
        store = Store() if store is None else store
        start = store.length()
        x = x + self.positions[start : start + x.shape[1]]
        for kind, layer in zip(self.config.kinds, self.layers, strict=True):
            x = layer(x if kind == "plain" else x * 2, store)
        return {"y": x, "store": store}


def made(*kinds: str) -> tuple[Any, torch.Tensor, pk.Graph]:
    torch.manual_seed(0)
    model, x = Decoder(list(kinds)).double().eval(), X.double()
    return model, x, pk.Graph.of(model, x)


def without(model: Any, graph: pk.Graph, names: list[str]) -> tuple[pk.Plan, Any]:
    plan = draft_without(model, graph.drafts, names)
    return plan, applied_as_json(plan, model)


def test_the_first_layer_goes_with_its_number_and_its_kind() -> None:
    model, x, graph = made("twice", "plain", "twice", "plain")
    with pytest.raises(pk.RehearsalError):
        graph.plan_without(["layers.0.key"])  # the cache is measured by the first layer
    model, x, graph = made("plain", "twice", "plain", "twice")
    plan, small = without(model, graph, ["layers.0.key"])
    assert plan.entries.deletions == (Deletion("layers", 4, (0,)),)
    assert set(plan.entries.changes) == {
        *(Recount((f"layers.{number}", ("number",)), number, number - 1) for number in (1, 2, 3)),
        Shortening(("", ("config", "kinds")), 4, (0,), ("plain",)),
    }
    assert [layer.number for layer in small.layers] == [0, 1, 2]
    assert small.config.kinds == ["twice", "plain", "twice"]
    assert (small.config.scales, small.config.layers, model.config.kinds[0]) == ((0.5, 1.0), 4, "plain")
    assert list(small.state_dict()) == list(Decoder(["twice", "plain", "twice"]).state_dict())
    assert torch.equal(small.layers[0].key.weight, model.layers[1].key.weight)
    assert pk.check_exact(model, small, plan, x)


@pytest.fixture
def plain() -> tuple[Any, torch.Tensor, pk.Graph]:
    return made("plain", "plain", "plain", "plain")


def test_names_follow(plain: Any) -> None:
    model, _, graph = plain
    plan, _ = without(model, graph, ["layers.0.key", "layers.2.key"])
    renaming = plan.renaming
    assert renaming.after("layers.1.key.weight") == "layers.0.key.weight"
    assert renaming.after("layers.3") == "layers.1"
    assert renaming.after("layers.2.key.weight") is None
    assert renaming.after("layers.0") is None
    assert [renaming.before(f"layers.{n}.out.bias") for n in (0, 1)] == ["layers.1.out.bias", "layers.3.out.bias"]
    assert renaming.after("positions") == "positions"
    assert set(renaming.vacated()) == {"layers.2", "layers.3"}
    with pytest.raises(pk.PlanError, match=r"(?s)doesn't lead to this model.*layers\.[23].*takes the module out"):
        graph.adopt(copy.deepcopy(model), plan)


def test_steps_compose_and_come_apart(plain: Any) -> None:
    model, x, graph = plain
    first, small = without(model, graph, ["layers.1.key"])
    later, smaller = without(small, pk.Graph.of(small, x), ["layers.0.key"])
    both = first.then(later)
    assert both.absent == ("layers.1.key", "layers.0.key")
    assert both.entries.deletions == (Deletion("layers", 4, (0, 1)),)
    once = both.apply(copy.deepcopy(model))
    assert torch.equal(once(x)["y"], smaller(x)["y"])
    assert [layer.number for layer in once.layers] == [0, 1]
    assert pk.check_exact(model, once, both, x)
    assert both.since(first) == later
    again = both.since(first).apply(first.apply(copy.deepcopy(model)))
    assert torch.equal(again(x)["y"], once(x)["y"])


def test_widths_and_entries_go_in_one_plan_through_the_graph() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(x).relu())

    model, x = nn.Sequential(nn.Linear(8, 8), Block(), Block(), nn.Linear(8, 8)).double().eval(), X.double()
    graph = pk.Graph.of(model, x)
    plan = draft_without(model, graph.drafts, ["1.up"], {"2.up": (1, 4, 5)})
    original = copy.deepcopy(model)
    graph.apply(plan)
    assert [type(part).__name__ for part in model] == ["Linear", "Block", "Linear"]
    assert model[1].up.weight.shape == (3, 8)
    assert graph.remaining("2.up") == (1, 4, 5)
    assert [(view.path, view.tensor.shape[0]) for view in graph.views("2.up")] == [
        ("1.up", 3),
        ("1.up", 3),
        ("1.down", 8),
    ]
    assert pk.check_exact(original, model, plan, x)


def test_a_layer_whose_position_counts_otherwise_stays_in_its_list() -> None:
    """The loop adds its index, which no list says: the layer is the identity, and stays where it is."""

    class Counts(Decoder):
        def forward(self, x: torch.Tensor, store: Store | None = None) -> dict[str, Any]:
            store = Store() if store is None else store
            for number, layer in enumerate(self.layers):
                x = layer(x + number, store)
            return {"y": x, "store": store}

    torch.manual_seed(0)
    model, x = Counts(["plain"] * 3).double().eval(), X.double()
    plan, small = without(model, pk.Graph.of(model, x), ["layers.1.key"])
    assert not plan.entries
    assert len(small.layers) == 3
    assert pk.check_exact(model, small, plan, x)


def test_plans_of_strangers_are_checked(plain: Any) -> None:
    model, _, graph = plain
    plan, _ = without(model, graph, ["layers.1.key"])
    for change, message in (
        (lambda part: part["lists"].update(layers=[4, [2]]), "the plan doesn't exchange it"),
        (lambda part: part["lists"].update(layers=[5, [1]]), "it is no list of 5 modules"),
        (lambda part: part["lists"].update({"layers.1": [4, [1]]}), "it is no list of 4 modules"),
        (lambda part: part["lists"].update(layers=[4, [0, 1, 2, 4]]), "are no entries of 4"),
        (lambda part: part["lists"].update(layers=[4, [1, 1]]), "are no entries of 4"),
        (lambda part: part["numbers"].append(["", ["config", "layers"], 3, 1]), "isn't what the plan expects there"),
        (lambda part: part["numbers"].append(["", ["config", "nothing"], 4, 3]), "isn't what the plan expects there"),
        (lambda part: part["numbers"].append(["", ["forward", "x"], 4, 3]), "isn't what the plan expects there"),
        (lambda part: part["numbers"].append(["", [], 4, 3]), "names no attribute"),
        (
            lambda part: part["values"].append(["", ["config", "scales"], 3, [1], [1.0]]),
            "isn't what the plan expects there",
        ),
        (lambda part: part.pop("values"), "KeyError"),
    ):
        data = json.loads(plan.to_json())
        change(data["absent"]["entries"])
        with pytest.raises(pk.PlanError, match=message):
            pk.Plan.from_json(json.dumps(data)).apply(model)
    assert len(model.layers) == 4


def test_entries_are_data() -> None:
    entries = Entries(
        (Deletion("a", 3, (1,)), Deletion("a.2.b", 2, (0,))),
        (Recount(("a.2", ("index",)), 2, 1), Shortening(("", ("config", "kinds")), 3, (1,), ("a",))),
    )
    assert from_json(json.loads(json.dumps(to_json(entries)))) == entries
    assert entries.renamed() == {"a.2": "a.1", "a.2.b.1": "a.2.b.0"}
    assert entries.deleted() == {"a.1", "a.2.b.0"}


def renaming_of(*deletions: Deletion) -> Renaming:
    entries = Entries(deletions)
    return Renaming(frozenset(), frozenset(), (), entries.renamed(), entries.deleted())


def test_lists_in_lists_lose_entries_together() -> None:
    renaming = renaming_of(Deletion("a", 3, (0,)), Deletion("a.1.b", 4, (1,)))
    assert renaming.after("a.1.b.3.w") == "a.0.b.2.w"
    assert renaming.before("a.0.b.2.w") == "a.1.b.3.w"
    assert set(renaming.vacated()) == {"a.2", "a.0.b.3"}
    whole = renaming_of(Deletion("a", 2, (0,)), Deletion("a.0.b", 3, (1,)))  # the inner list goes, too
    assert set(whole.vacated()) == {"a.1"}


def test_names_of_entries_lead_back_and_vacated_paths_are_those_that_nothing_has() -> None:
    """Lists of lists of three, the model itself a list or not, with random entries gone at every level."""
    chance = random.Random(0)
    for root in ("", "a") * 40:
        deletions, paths, level = list[Deletion](), list[str](), [root]
        for _ in range(3):
            for container in level:
                gone = tuple(n for n in range(3) if chance.random() < 0.3)
                if gone and len(gone) < 3:
                    deletions.append(Deletion(container, 3, gone))
            level = [f"{container}.{number}".lstrip(".") for container in level for number in range(3)]
            paths += level
        renaming = renaming_of(*deletions)
        after = {path: renaming.after(path) for path in paths}
        left = {path: now for path, now in after.items() if now is not None}
        assert len(set(left.values())) == len(left) < len(paths)
        assert all(renaming.before(f"{now}.w") == f"{path}.w" for path, now in left.items())
        outermost = {path for path in {*paths} - {*left.values()} if path.rpartition(".")[0] in {root, *left.values()}}
        assert set(renaming.vacated()) == outermost

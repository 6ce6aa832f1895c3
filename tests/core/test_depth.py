"""Pruning by depth: which branches go, what is exact afterwards, and what is refused before anything changes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.plugin import BranchGroup, BranchNeed, MeanOverRows


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(torch.tanh(self.mix(x)).cumsum(1))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(F.gelu(self.up(x)))
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.mlp = Attend(), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x)
        return x + self.mlp(x)


class Deep(nn.Module):
    """Four layers with two branches each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(4)), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.head(x)
        return out


NAMES = tuple(f"layers.{layer}.{part}" for layer in range(4) for part in ("attend", "mlp"))
X = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep().eval()


def scaled(sizes: dict[str, float]) -> Deep:
    """A model in which some branches add much less than others."""
    model = deep()
    for name, size in sizes.items():
        last = model.get_submodule(f"{name}.out")
        with torch.no_grad():
            last.weight.mul_(size)  # type: ignore[operator, union-attr]
            last.bias.mul_(size)  # type: ignore[operator, union-attr]
    return model


def without(model: Deep, names: Any) -> torch.Tensor:
    """What the model computes with some branches zeroed by hand."""
    with torch.no_grad():
        x = model.embed(X)
        for place, layer in enumerate(model.layers):
            if f"layers.{place}.attend" not in names:
                x = x + layer.attend(x)  # type: ignore[operator, union-attr]
            if f"layers.{place}.mlp" not in names:
                x = x + layer.mlp(x)  # type: ignore[operator, union-attr]
        out: torch.Tensor = model.head(x)
    return out


def lost(model: Deep, names: Any) -> float:
    whole = without(model, ())
    return float((without(model, names) - whole).square().sum() / whole.square().sum())


def pruned(model: nn.Module, inputs: Any = X, **options: Any) -> pk.PruneResult:
    return pk.prune(copy.deepcopy(model), inputs, **{"compensation": None, **options})


def test_a_ratio_takes_as_many_of_each_structure() -> None:
    model = scaled({"layers.1.attend": 1e-3, "layers.2.mlp": 1e-3, "layers.3.mlp": 1e-2, "layers.0.mlp": 1e-1})
    result = pruned(model, branch_ratio=0.25, calibration=[X], branch_importance="relative_energy")
    assert result.report.absent == ("layers.1.attend", "layers.2.mlp")
    assert torch.allclose(result.model(X), without(model, result.report.absent), atol=1e-6)
    everywhere = pruned(
        model, branch_ratio=0.25, calibration=[X], branch_importance="relative_energy", global_pruning=True
    )
    assert set(everywhere.report.absent) == {"layers.1.attend", "layers.2.mlp"}
    most = pruned(model, branch_ratio=0.5, calibration=[X], branch_importance="relative_energy", global_pruning=True)
    assert set(most.report.absent) >= {"layers.1.attend", "layers.2.mlp", "layers.3.mlp", "layers.0.mlp"}


def test_by_default_no_branch_goes_and_units_stay_where_branches_go() -> None:
    plain = pruned(deep())
    assert plain.report.absent == ()
    assert plain.report.branches == {}
    assert plain.plan.absent == ()
    assert plain.plan.cuts
    assert "branch" not in str(plain)
    depth = pruned(deep(), branch_ratio=0.25)
    assert depth.plan.cuts == ()
    assert len(depth.plan.absent) == 2
    assert "branches were chosen by their weights alone, a weak guess" in str(depth)


def test_a_ratio_of_nothing_leaves_the_model_with_calibration_data_as_well() -> None:
    result = pruned(deep(), ratio=0.0, calibration=[X])
    assert not result.plan.cuts
    assert torch.equal(result.model(X), deep()(X))


@pytest.mark.parametrize("none", [{"branches": []}, {"branch_ratio": 0.0}])
def test_units_stay_where_branches_were_spoken_of_and_none_goes(none: dict[str, Any]) -> None:
    """A list that was computed and is empty, or a ratio that a loop starts with, isn't a wish for narrower layers."""
    for options in ({}, {"calibration": [X]}):
        result = pruned(deep(), **none, **options)
        assert result.preview.params_after == result.preview.params_before
        assert torch.equal(result.model(X), deep()(X))
    assert pruned(deep(), ratio=0.5, **none).plan.cuts
    assert pruned(deep(), target={"params": 0.7}, **none).plan.cuts


def test_the_outputs_choose_one_after_the_other() -> None:
    """The default with calibration data is what a greedy search by hand finds."""
    model, expected = deep(), list[str]()
    for _ in range(4):
        left = [name for name in NAMES if name not in expected]
        expected.append(min(left, key=lambda name: lost(model, [*expected, name])))
    result = pruned(model, branch_ratio=0.5, calibration=[X], global_pruning=True)
    assert set(result.report.absent) == set(expected)
    assert torch.allclose(result.model(X), without(model, expected), atol=1e-6)


def test_a_target_is_met_by_the_branches_that_do_least_for_what_they_save() -> None:
    model = deep()
    result = pruned(model, target={"params": 0.7}, by="depth", calibration=[X])
    costs = result.preview.costs["params"]
    assert costs[1] <= 0.7 * costs[0]
    assert sum(p.numel() for p in result.model.parameters()) == costs[1] == result.preview.params_after
    assert torch.allclose(result.model(X), without(model, result.report.absent), atol=1e-6)
    for name in result.report.absent:  # none could have stayed
        fewer = pruned(model, branches=[other for other in result.report.absent if other != name])
        assert fewer.preview.params_after > 0.7 * costs[0]
    sizes = {name: 280 if name.endswith("mlp") else 144 for name in NAMES}
    assert costs[0] - costs[1] == sum(sizes[name] for name in result.report.absent)


def test_a_target_that_is_met_already_takes_nothing() -> None:
    result = pruned(deep(), target={"params": 1.0}, by="depth")
    assert result.report.absent == ()
    assert result.preview.params_after == result.preview.params_before


def test_a_target_out_of_reach_says_what_can_be_reached() -> None:
    model = deep()
    with pytest.raises(pk.ArgumentError) as caught:
        pk.prune(model, X, target={"params": 0.1}, by="depth", keep_first=2)
    text = str(caught.value)
    assert text.startswith("The target can't be reached by depth.")
    assert "without 5 of 8 branches the model has params=" in text or "without 6 of 8" in text
    assert "one of the first 2 (keep_first)" in text
    assert all(torch.equal(value, deep().state_dict()[key]) for key, value in model.state_dict().items())


def test_first_and_last_ignored_ones_and_the_largest_part_stay() -> None:
    model = scaled(dict.fromkeys(("layers.0.attend", "layers.1.mlp", "layers.3.mlp"), 1e-4))
    options = {"calibration": [X], "branch_importance": "relative_energy", "global_pruning": True}
    assert set(pruned(model, branch_ratio=0.4, **options).report.absent) == {
        "layers.0.attend",
        "layers.1.mlp",
        "layers.3.mlp",
    }
    result = pruned(model, branch_ratio=0.4, keep_first=1, keep_last=1, ignored_layers=["layers.1"], **options)
    assert not {"layers.0.attend", "layers.1.mlp", "layers.1.attend", "layers.3.mlp"} & set(result.report.absent)
    assert len(result.report.absent) == 3
    assert result.report.branches["layers.0.attend"] == "one of the first 1 (keep_first)"
    assert result.report.branches["layers.3.mlp"] == "one of the last 1 (keep_last)"
    assert result.report.branches["layers.1.mlp"] == "layers.1.mlp.out is in ignored_layers"
    assert len(pruned(model, branch_ratio=0.9, max_pruning_ratio=0.25, **options).report.absent) == 2
    assert len(pruned(model, branch_ratio=0.999, **options).report.absent) == 7  # one always stays


def test_branches_are_taken_by_name() -> None:
    model = deep()
    result = pruned(model, branches=["layers.3.mlp", "layers.0.attend"], verify="always")
    assert result.report.absent == result.plan.absent == ("layers.0.attend", "layers.3.mlp")
    assert torch.allclose(result.model(X), without(model, result.report.absent), atol=1e-6)
    assert result.verification.check
    assert pk.Plan.from_json(result.plan.to_json()) == result.plan
    assert result.protocol.arguments["branches"] == ["layers.3.mlp", "layers.0.attend"]


def test_a_layer_without_branches_leaves_its_list_however_they_were_chosen() -> None:
    small = {f"layers.{number}.{part}": 1e-4 for number in (1, 2) for part in ("attend", "mlp")}
    model = scaled(small)
    last = model.layers[3].mlp.up.weight  # type: ignore[union-attr]
    ways: list[dict[str, Any]] = [
        {"branches": list(small)},
        {"branch_ratio": 0.5, "branch_importance": "relative_energy"},
        {"branch_ratio": 0.5, "global_pruning": True, "branch_importance": "output_change"},
        {"target": {"params": 0.55}, "by": "depth", "branch_importance": "relative_energy"},
        {"branches": list(small), "ratio": 0.25},
        {"branches": ["layers.2", "layers.1"]},
    ]
    for way in ways:
        data = {} if "branches" in way else {"calibration": [X]}
        result = pruned(model, verify="always", **way, **data)
        assert result.report.absent == tuple(small)
        assert len(result.model.layers) == 2  # type: ignore[arg-type]
        assert "layers.1, layers.2 are gone; layers.3 is layers.1 now" in result.report.notes
        assert result.verification.check
        assert pk.check_exact(model, result.model, result.plan, X)
        kept = pruned(model, keep_names=True, **way, **data)
        assert (len(kept.model.layers), kept.plan.absent) == (4, result.plan.absent)  # type: ignore[arg-type]
        assert not kept.plan.entries
        assert kept.protocol.arguments["keep_names"] is True
        assert torch.equal(kept.model(X), result.model(X))
        if "ratio" not in way:
            assert torch.equal(result.model.layers[1].mlp.up.weight, last)  # type: ignore[index, union-attr]


def test_units_and_branches_go_together() -> None:
    model = deep()
    result = pruned(model, ratio=0.5, branches=["layers.0.mlp"], verify="always")
    assert result.model.layers[1].mlp.up.out_features == 8  # type: ignore[index, union-attr]
    assert "layers.0.mlp.up" not in {*result.report.pruned, *result.report.left}
    assert "layers.1.mlp.up" in result.report.pruned
    assert result.verification.check
    assert pk.check_exact(model, result.model, result.plan, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ["layers.0.atend"]}, r"(?s)no such branch.*layers\.0\.atend.*did you mean 'layers.0.attend'"),
        ({"branches": list(NAMES)}, "can't lose all of its branches"),
        ({"branches": "layers.0.mlp"}, "branches is a list of names"),
        ({"branches": [3]}, "branches is a list of names"),
        ({"branches": [nn.Linear(1, 1)]}, r"it has a module \(Linear\).*names are texts"),
        (
            {"branches": ["layers.0.mlp"], "ignored_layers": ["layers.0"]},
            "to go and to stay.*layers.0.mlp: .*ignored_la",
        ),
        ({"branches": ["layers.0.mlp"], "keep_first": 3}, r"to go and to stay.*one of the first 3 \(keep_first\)"),
        ({"branches": NAMES[:2], "max_pruning_ratio": 0.2}, "to go and to stay.*max_pruning_ratio=0.2 lets 1 of 8 go"),
        ({"branch_ratio": 0.5, "max_pruning_ratio": 0.0}, "No branch can go.*max_pruning_ratio=0 lets 0 of 8 go"),
        ({"branch_ratio": 0.5, "calibration": [X / 0]}, "Calibration data hold NaN or infinity.*batch 0"),
        (
            {"branch_ratio": 0.5, "importance": "taylor"},
            "importance ranks units, and none are to go.*branch_importance",
        ),
        ({"branch_ratio": 1.0}, r"branch_ratio must lie in \[0, 1\).*half of the branches"),
        ({"branch_ratio": -0.1}, r"branch_ratio must lie in \[0, 1\)"),
        ({"branch_ratio": "half"}, r"branch_ratio must lie in \[0, 1\)"),
        ({"branch_ratio": 0.5, "branches": ["layers.0.mlp"]}, "not both"),
        ({"branch_ratio": 0.5, "target": {"macs": 0.5}}, "met by units or by branches"),
        ({"by": "depth"}, 'by="depth" needs a target'),
        ({"by": "height", "target": {"macs": 0.5}}, 'by must be "width", "depth" or "both"'),
        ({"branch_ratio": 0.5, "keep_first": -1}, "keep_first must be a number of branches"),
        ({"keep_last": 2}, "keep_last is about branches, and none is to go"),
        ({"keep_names": True}, "keep_names is about branches, and none is to go"),
        ({"branch_ratio": 0.5, "keep_names": "no"}, "keep_names"),
        ({"branch_ratio": 0.5, "branch_importance": "lamp"}, "nothing to say about branches.*lamp"),
        ({"branch_ratio": 0.5, "branch_importance": "lampp"}, "lampp"),
        ({"branch_ratio": 0.5, "branch_importance": "block_influence"}, "needs calibration data for branches"),
        ({"branch_ratio": 0.5, "allocation": "dp"}, "An allocation is about units"),
        ({"branch_ratio": 0.5, "ignored_layers": ["layer"]}, "(?s)ignored_layers|no module"),
        ({"by": "both"}, 'by="both" needs a target'),
        ({"by": "both", "target": {"macs": 0.5}}, "(?s)needs calibration data.*there are none"),
        ({"by": "both", "target": {"macs": 0.5}, "branch_ratio": 0.5}, "met by units or by branches"),
        ({"by": "depth", "target": {"mac": 0.5}}, "No cost model is registered as 'mac'"),
        ({"branch_ratio": 0.1}, "No branch can go.*branch_ratio=0.1 of 4 alike is less than one"),
    ],
)
def test_wrong_arguments_change_nothing(options: dict[str, Any], message: str) -> None:
    model = deep()
    with pytest.raises(pk.PrunekitError, match=f"(?s){message.removeprefix('(?s)')}"):
        pk.prune(model, X, **options)
    assert all(torch.equal(value, deep().state_dict()[key]) for key, value in model.state_dict().items())
    assert all(isinstance(layer, Layer) for layer in model.layers)


class Joined(nn.Module):
    """A sum of two branches of one input: one of them has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.tail = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x) + self.b(x)
        return x + self.tail(x)


def test_a_branch_that_can_not_go_is_given_back_and_the_next_one_goes() -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    with torch.no_grad():
        model.tail.weight.mul_(10)
    result = pruned(model, branch_ratio=0.67, calibration=[X], branch_importance="relative_energy", global_pruning=True)
    assert len(result.report.absent) == 2
    assert "tail" in result.report.absent
    (left,) = set("ab") - set(result.report.absent)
    assert result.report.branches[left].startswith("given back: nothing would be left of a sum")


class LargestToken:
    """A criterion for branches in ten lines: the largest norm that a branch adds to a token."""

    def __call__(self, group: pk.Group) -> None:
        return None

    def branch(self, group: BranchGroup) -> MeanOverRows:
        return MeanOverRows(lambda one: one.added.norm(dim=1).max()[None])


def test_a_criterion_of_ones_own() -> None:
    model = scaled({"layers.2.attend": 1e-3, "layers.2.mlp": 1e-3})
    result = pruned(model, branch_ratio=0.25, calibration=[X], branch_importance=LargestToken())
    assert result.report.absent == ("layers.2.attend", "layers.2.mlp")


def criterion(branch: Any) -> Any:
    class Own:
        def __call__(self, group: pk.Group) -> None:
            return None

        def branch(self, group: BranchGroup) -> Any:
            return branch(group)

    return Own()


class Gatherer:
    needs: Any = BranchNeed.SUMS

    def __init__(self, needs: Any, add: Any, score: Any) -> None:
        self.needs, self._add, self._score = needs, add, score

    def add(self, seen: Any) -> None:
        self._add(seen)

    def score(self) -> Any:
        return self._score


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (lambda group: "high", "(?s)one score per branch.*it returned str.*number, None"),
        (lambda group: torch.ones(2), "(?s)one score per branch.*it returned Tensor"),
        (lambda group: float("nan"), "(?s)not finite.*nan"),
        (lambda group: 1 / 0, "(?s)A criterion failed.*ZeroDivisionError"),
        (lambda group: group.graph.model.head.weight.data.zero_(), "A criterion changes the model"),
        (lambda group: Gatherer("sums", None, 1.0), "(?s)asks for something else.*needs is 'sums'"),
        (lambda group: Gatherer(BranchNeed.SUMS, lambda seen: seen.nothing, 1.0), "(?s)A criterion failed.*nothing"),
        (lambda group: Gatherer(BranchNeed.OUTPUTS, lambda seen: None, None), "No branch can go"),
        (lambda group: None, "(?s)No branch can go.*the criterion has nothing to say about it"),
    ],
)
def test_criteria_that_fail_are_named(branch: Any, message: str) -> None:
    model = deep()
    with pytest.raises(pk.PrunekitError, match=message):
        pk.prune(model, X, branch_ratio=0.5, branch_importance=criterion(branch), calibration=[X])
    assert all(torch.equal(value, deep().state_dict()[key]) for key, value in model.state_dict().items())


def test_scores_may_be_numbers_of_any_kind() -> None:
    order = itertools.count()
    for kind in (int, float, lambda n: torch.tensor(n), lambda n: torch.tensor([float(n)])):
        found = pruned(
            deep(),
            branch_ratio=0.25,
            branch_importance=criterion(lambda group, kind=kind: kind(next(order))),
            global_pruning=True,
        )
        assert found.report.absent == NAMES[:2]


def test_the_report_lists_what_became_of_branches() -> None:
    result = pruned(deep(), branches=["layers.1.mlp"])
    lines = str(result.report).splitlines()
    assert lines[:3] == ["branches gone: 1 of 8", "  layers.1.mlp", "branches left: 7"]
    assert "  layers.0.attend: not named" in lines
    assert not any(line.startswith("  layers.1.mlp.") for line in lines)


class Beside(nn.Module):
    """Layers that add an attention and a feed-forward of the same, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer.attend(x) + layer.mlp(x)  # type: ignore[operator, union-attr]
        return x


def test_the_stream_itself_is_not_counted_as_a_branch() -> None:
    """What is summed up so far, ``x + attend(x)``, is read by the next layers: without it nothing would be left."""
    torch.manual_seed(0)
    model, x = Beside().eval(), torch.randn(2, 6, 8)
    assert [branch.name for branch in pk.Graph.of(model, x).branches()] == list(NAMES)
    result = pruned(model, x, branch_ratio=0.25)
    assert sorted(name.rpartition(".")[2] for name in result.report.absent) == ["attend", "mlp"]
    with pytest.raises(pk.ArgumentError, match="can't lose all of its branches"):
        pruned(model, x, branches=NAMES)


def test_repaired_weights_are_those_of_the_layers_under_their_new_numbers() -> None:
    """A whole layer leaves its list: what is fitted goes into the layer that it was fitted for."""
    gone = ["layers.0.attend", "layers.0.mlp", "layers.1.attend", "layers.3.mlp"]
    kept, renumbered = (
        pruned(deep(), branches=gone, calibration=[X, 2 * X], keep_names=keep_names, compensation="least_squares")
        for keep_names in (True, False)
    )
    assert (len(kept.model.layers), len(renumbered.model.layers)) == (4, 3)  # type: ignore[arg-type]
    assert kept.compensation is not None
    assert kept.compensation.layers
    assert torch.allclose(renumbered.model(X), kept.model(X), atol=1e-5)
    plain = pruned(deep(), branches=gone, calibration=[X, 2 * X], compensation=None)
    whole = deep()(X)
    repaired, cut = ((found.model(X) - whole).square().sum() for found in (renumbered, plain))
    assert repaired < 0.9 * cut


def test_the_only_branch_of_a_model_stays() -> None:
    model = Deep()
    model.layers = nn.ModuleList([Layer()])
    model.layers[0].attend = nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(pk.NothingToPruneError, match=r"layers\.0\.mlp: one branch always stays"):
        pk.prune(model.eval(), X, branch_ratio=0.9)
    with pytest.raises(pk.ArgumentError, match=r"it has no other one; ratio=0\.5 removes units instead"):
        pk.prune(model.eval(), X, branches=["layers.0.mlp"])


def test_a_criterion_without_a_word_on_units_is_reported_where_units_were_to_go() -> None:
    result = pruned(deep(), branch_ratio=0.25, ratio=0.5, importance="block_influence", calibration=[X])
    assert len(result.report.absent) == 2
    assert any(note.startswith("no units went, of which ratio=0.5 should: ") for note in result.report.notes)

"""One target for depth and width: the choice that changes held-out outputs least, compared by hand."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch

import prunekit as pk
from tests.core.test_depth import NAMES, Deep, X, deep, pruned, scaled, without

GENERATOR = torch.Generator().manual_seed(3)
BATCHES = [torch.randn(8, 6, 3, generator=GENERATOR) for _ in range(4)]
HELD = BATCHES[-1]


def tried(result: pk.PruneResult) -> dict[int, tuple[float, bool]]:
    """The choices in a report: number of branches that go to change of outputs, whether it was taken."""
    found = {}
    for note in result.report.notes:
        seen = re.match(r"(?:units alone|without (\d+) branch(?:es)?): held-out outputs change by ([^;( ]+)", note)
        if seen:
            found[int(seen[1] or 0)] = (float(seen[2]), note.endswith("this was taken"))
    return found


def change(small: Any, whole: Any) -> float:
    with torch.no_grad():
        expected = whole(HELD).double()
        return float((small(HELD).double() - expected).square().sum() / expected.square().sum())


def params(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def with_idle_units() -> Deep:
    """Half of the units of every feed-forward do nothing, and every branch does much."""
    model = deep()
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.out.weight.mul_(3)  # type: ignore[union-attr, operator]
            layer.attend.out.weight.mul_(3)  # type: ignore[union-attr, operator]
            layer.mlp.out.weight[:, ::2] = 0  # type: ignore[union-attr, index]
            layer.mlp.up.weight[::2] *= 1e-3  # type: ignore[union-attr, index]
    return model


def test_branches_go_where_they_do_nothing() -> None:
    idle = ("layers.1.mlp", "layers.2.attend", "layers.3.mlp")
    model = scaled(dict.fromkeys(idle, 1e-4))
    result = pruned(model, target={"params": 0.61}, by="both", calibration=BATCHES)
    assert result.preview.params_after == params(result.model) <= 0.61 * params(model)
    found = tried(result)
    assert [count for count, (_, taken) in found.items() if taken] == [3]
    assert set(result.report.absent) == set(idle)
    assert torch.allclose(result.model(X), without(model, idle), atol=1e-6)
    assert found[3][0] == pytest.approx(change(result.model, model), rel=0.01)
    assert found[3][0] < found[0][0]
    assert result.protocol.arguments["by"] == "both"


def test_units_go_where_they_do_nothing_and_weights_are_compensated() -> None:
    model = with_idle_units()
    whole = params(model)
    target = {"params": 1 - 4 * 8 * 17 / whole}
    repaired = {"target": target, "compensation": "least_squares"}
    result = pruned(model, by="both", calibration=BATCHES, **repaired)
    assert list(tried(result)) == [0]  # no branch is worth a trial
    assert result.report.absent == ()
    assert set(result.report.branches) == set(NAMES)
    assert params(result.model) <= target["params"] * whole
    assert result.compensation is not None
    assert result.compensation.layers
    alone = pruned(model, calibration=BATCHES[:-1], **repaired)
    assert alone.plan == result.plan
    assert torch.allclose(alone.model(X), result.model(X), atol=1e-6)


def test_what_was_measured_is_what_each_choice_does_when_it_is_carried_out_alone() -> None:
    """Whatever is taken is the least of them, and meets the target; units alone are what width alone cuts."""
    model = scaled({"layers.2.mlp": 0.05, "layers.3.attend": 0.05})
    result = pruned(model, target={"params": 0.7}, by="both", calibration=BATCHES, compensation=None)
    found = tried(result)
    assert len(found) >= 2
    (taken,) = [count for count, (_, is_taken) in found.items() if is_taken]
    assert found[taken][0] == min(change for change, _ in found.values())
    assert taken == len(result.report.absent)
    assert found[taken][0] == pytest.approx(change(result.model, model), rel=0.01)
    assert params(result.model) <= 0.7 * params(model)
    by_width = pruned(model, target={"params": 0.7}, calibration=BATCHES[:-1], compensation=None)
    assert found[0][0] == pytest.approx(change(by_width.model, model), rel=0.01)
    assert pk.check_exact(model, result.model, result.plan, X)


def test_the_report_says_what_each_axis_alone_would_cost() -> None:
    model = scaled(dict.fromkeys(("layers.1.mlp", "layers.2.attend", "layers.3.mlp"), 1e-4))
    result = pruned(model, target={"params": 0.61}, by="both", calibration=BATCHES)
    (trace,) = [note for note in result.report.notes if note.startswith("what one axis alone would cost")]
    seen = re.fullmatch(
        r"what one axis alone would cost for each percent of the saving, by estimate: units (\S+), branches (\S+)",
        trace,
    )
    assert seen, trace
    alone = pruned(model, target={"params": 0.61}, calibration=BATCHES[:-1])
    assert float(seen[1]) == pytest.approx(change(alone.model, model) / 100, rel=0.1)
    assert float(seen[2]) < 1e-3 * float(seen[1])


def test_both_reach_what_neither_reaches_alone() -> None:
    model = deep()
    whole = params(model)
    options: dict[str, Any] = {"target": {"params": 0.45}, "max_pruning_ratio": 0.3, "calibration": BATCHES}
    for by in ("width", "depth"):
        with pytest.raises(pk.ArgumentError, match="can't be reached"):
            pk.prune(copy.deepcopy(model), X, by=by, **options)
    result = pruned(model, by="both", **options)
    assert params(result.model) <= 0.45 * whole
    assert len(result.report.absent) <= 0.3 * len(NAMES)
    assert all(len(cut.kept) >= 0.7 * result.graph.analysis.groups[cut.group].size for cut in result.plan.cuts)
    assert result.report.absent
    assert result.plan.cuts
    assert any(note.startswith("units alone: the smallest model has") for note in result.report.notes)
    assert pk.check_exact(model, result.model, result.plan, X)


def test_a_target_out_of_reach_names_what_holds_and_the_nearest_one() -> None:
    """What the error offers can be had; what it says that a constraint costs is what is left without it."""
    model = deep()
    options: dict[str, Any] = {"max_pruning_ratio": 0.3, "keep_last": 2, "calibration": BATCHES, "by": "both"}
    with pytest.raises(pk.ArgumentError) as caught:
        pk.prune(copy.deepcopy(model), X, target={"params": 0.05}, **options)
    text = str(caught.value)
    assert text.startswith("The target can't be reached by depth and width.")
    assert re.search(r"the smallest model has params=\S+ \(\S+%\); asked for params=89", text)
    lifted = re.search(r"without max_pruning_ratio=0.3 it would have params=([\d,]+)", text)
    assert lifted
    smallest = pruned(
        model, target={"params": int(lifted[1].replace(",", "")) + 1}, by="both", keep_last=2, calibration=BATCHES
    )
    assert params(smallest.model) <= int(lifted[1].replace(",", "")) + 1
    assert "without keep_last" not in text  # others may go in their place
    nearest = re.search(r"the nearest target is about \{'params': (\S+)\}", text)
    assert nearest
    found = pruned(model, target={"params": float(nearest[1])}, **options)
    assert params(found.model) <= float(nearest[1]) * params(model)
    with pytest.raises(pk.ArgumentError):
        pruned(model, target={"params": float(nearest[1]) - 0.005}, **options)


@pytest.mark.parametrize("allocation", ["uniform", "global", "greedy", "dp", "estimated"])
def test_units_are_chosen_by_any_allocation(allocation: str) -> None:
    model = deep()
    result = pruned(model, target={"macs": 0.6}, by="both", calibration=BATCHES, allocation=allocation)
    before, after = result.preview.costs["macs"]
    assert after <= 0.6 * before
    assert result.protocol.arguments["allocation"] == allocation
    assert tried(result)


def test_one_batch_decides_and_measures_and_the_report_says_so() -> None:
    model = deep()
    result = pruned(model, target={"params": 0.8}, by="both", calibration=[HELD])
    assert any("there is only one batch of calibration data" in note for note in result.report.notes)
    several = pruned(model, target={"params": 0.8}, by="both", calibration=iter(BATCHES))
    assert not any("only one batch" in note for note in several.report.notes)


def test_limits_hold_for_both() -> None:
    model = scaled(dict.fromkeys(("layers.0.attend", "layers.1.mlp", "layers.3.mlp"), 1e-4))
    result = pruned(
        model, target={"params": 0.75}, by="both", calibration=BATCHES, ignored_layers=["layers.1"], keep_first=1,
        keep_last=1,
    )  # fmt: skip
    assert not {"layers.0.attend", "layers.1.mlp", "layers.1.attend", "layers.3.mlp"} & set(result.report.absent)
    assert not any(name.startswith("layers.1.") for name in result.report.pruned)
    assert result.report.branches["layers.0.attend"] == "one of the first 1 (keep_first)"


def test_a_target_that_is_met_takes_nothing() -> None:
    model = deep()
    result = pruned(model, target={"params": 1.0}, by="both", calibration=BATCHES)
    assert result.plan.empty
    assert torch.equal(result.model(X), model(X))

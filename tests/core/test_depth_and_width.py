"""One target for depth and width: the split that changes held-out outputs least, compared by hand."""

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


def splits(result: pk.PruneResult) -> dict[int, tuple[int, float, bool]]:
    """The splits in a report: percent by depth to number of branches, change of outputs, whether it was taken."""
    found = {}
    for note in result.report.notes:
        seen = re.match(
            r"(\d+)% of the saving by depth \((\d+) branch(?:es)?\): held-out outputs change by (\S+?)(,|$)", note
        )
        if seen:
            found[int(seen[1])] = (int(seen[2]), float(seen[3]), note.endswith("this split was taken"))
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
    found = splits(result)
    assert [share for share, (_, _, taken) in found.items() if taken] == [100]
    assert set(result.report.absent) == set(idle)
    assert torch.allclose(result.model(X), without(model, idle), atol=1e-6)
    assert found[100][1] == pytest.approx(change(result.model, model), rel=0.01)
    assert all(found[100][1] < worse for share, (_, worse, _) in found.items() if share != 100)
    assert result.protocol.arguments["by"] == "both"


def test_units_go_where_they_do_nothing_and_weights_are_compensated() -> None:
    model = with_idle_units()
    whole = params(model)
    target = {"params": 1 - 4 * 8 * 17 / whole}
    repaired = {"target": target, "compensation": "least_squares"}
    result = pruned(model, by="both", calibration=BATCHES, **repaired)
    found = splits(result)
    assert found[0][2]
    assert found[0][0] == 0
    assert result.report.absent == ()
    assert set(result.report.branches) == set(NAMES)
    assert params(result.model) <= target["params"] * whole
    assert result.compensation is not None
    assert result.compensation.layers
    alone = pruned(model, calibration=BATCHES[:-1], **repaired)
    assert alone.plan == result.plan
    assert torch.allclose(alone.model(X), result.model(X), atol=1e-6)
    assert change(result.model, model) < 0.01 * min(c for share, (_, c, _) in found.items() if share)


def test_the_numbers_are_those_of_each_split_carried_out_alone() -> None:
    """Whatever is taken is the least of them, and each meets the target: done again, one by one, by hand."""
    model = deep()
    result = pruned(model, target={"params": 0.7}, by="both", calibration=BATCHES, compensation=None)
    found = splits(result)
    assert len(found) >= 3
    taken = [share for share, (_, _, is_taken) in found.items() if is_taken]
    assert taken == [min(found, key=lambda share: found[share][1])]
    assert found[taken[0]][0] == len(result.report.absent)
    assert found[taken[0]][1] == pytest.approx(change(result.model, model), rel=0.01)
    assert params(result.model) <= 0.7 * params(model)
    by_width = pruned(model, target={"params": 0.7}, calibration=BATCHES[:-1], compensation=None)
    assert found[0][1] == pytest.approx(change(by_width.model, model), rel=0.01)


def test_both_reach_what_neither_reaches_alone() -> None:
    model = deep()
    whole = params(model)
    options: dict[str, Any] = {"target": {"params": 0.45}, "max_pruning_ratio": 0.3, "calibration": BATCHES}
    for by in ("width", "depth"):
        with pytest.raises(pk.ArgumentError, match="can't be reached"):
            pk.prune(copy.deepcopy(model), X, by=by, **options)
    result = pruned(model, by="both", **options)
    assert params(result.model) <= 0.45 * whole
    assert result.report.absent
    assert result.plan.cuts
    assert any(note.startswith("0% of the saving by depth: the smallest model has") for note in result.report.notes)
    assert "100% of the saving by depth: branches that may go don't save so much" in result.report.notes
    assert pk.check_exact(model, result.model, result.plan, X)
    with pytest.raises(pk.ArgumentError) as caught:
        pk.prune(copy.deepcopy(model), X, by="both", **{**options, "target": {"params": 0.05}})
    assert str(caught.value).startswith("The target can't be reached by depth and width.")
    assert "0% of the saving by depth: the smallest model has params=" in str(caught.value)


@pytest.mark.parametrize("allocation", ["uniform", "global", "greedy", "dp", "estimated"])
def test_units_are_chosen_by_any_allocation(allocation: str) -> None:
    model = deep()
    result = pruned(model, target={"macs": 0.6}, by="both", calibration=BATCHES, allocation=allocation)
    before, after = result.preview.costs["macs"]
    assert after <= 0.6 * before
    assert result.protocol.arguments["allocation"] == allocation
    assert splits(result)


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

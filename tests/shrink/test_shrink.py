"""A model is shrunk in steps: what each does, what is stored, and what a run goes on with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
import prunekit_core.files
from prunekit_plugins.shrink import Shrinking, shrink
from tests.distill.models import StoppedError, batches, inputs, net, same, stop_after, values

OPTIONS: dict[str, Any] = {
    "target": {"macs": 0.4},
    "steps": 2,
    "distill": {"steps": 6, "lr": 5e-3, "save_every": 1, "weights": {"logits": 1, "hidden": 0.5}},
}


def held_out() -> list[Tensor]:
    return list(inputs(48, 5).split(16))


def shrunk(model: nn.Module | None = None, **options: Any) -> Shrinking:
    given = {"calibration": batches(), "train": batches(), "held_out": held_out()} | OPTIONS | options
    return shrink(net() if model is None else model, inputs(2), **given)


def test_steps_lead_to_the_target_and_the_model_is_its_teacher_unchanged() -> None:
    model = net()
    before = values(model)
    result = shrunk(model, steps=3)
    assert same(values(model), before)
    assert result.model is not model
    dense = result.history[0].cut.costs["macs"][0]
    left = [step.cut.costs["macs"][1] / dense for step in result.history]
    allowed = [0.4 ** (number / 3) for number in (1, 2, 3)]
    assert [step.cut.target["macs"] / dense for step in result.history] == pytest.approx(allowed)
    assert all(allowed[i] - 0.1 < left[i] <= allowed[i] + 1e-9 for i in range(3))
    assert [step.cut.costs["macs"][0] / dense for step in result.history] == [1.0, *left[:2]]
    assert [step.training.steps for step in result.history if step.training] == [2, 2, 2]
    assert not result.stopped


def test_the_plan_of_all_steps_leads_from_the_model_to_the_result() -> None:
    result = shrunk()
    again = result.plan.apply(net())
    shapes = {name: tensor.shape for name, tensor in values(result.model).items()}
    assert {name: tensor.shape for name, tensor in values(again).items()} == shapes
    assert len(result.history) == 2


def test_a_step_is_a_cut_and_a_distillation_from_the_uncut_model() -> None:
    """The same by hand, with one step."""
    result = shrunk(steps=1, seed=3)
    student, teacher = net(), net()
    plan = pk.prune(student, inputs(2), target={"macs": 0.4}, calibration=batches()).plan
    found = pk.distill(student, teacher, batches(), plan=plan, held_out=held_out(), seed=4, **OPTIONS["distill"])
    assert same(values(result.model), values(student))
    step = result.history[0]
    assert step.training is not None
    assert step.training.held_out == found.held_out
    assert (step.loss_before, step.loss_cut) == (0.0, found.held_out[0][1])
    assert step.loss_after == min(loss for _, loss in found.held_out)


def test_losses_are_measured_before_the_cut_after_it_and_after_the_training() -> None:
    result = shrunk(steps=2)
    first, second = result.history
    assert first.loss_before == 0.0
    assert second.loss_before == first.loss_after
    for step in result.history:
        assert step.loss_before is not None
        assert step.loss_cut is not None
        assert step.loss_after is not None
        assert step.loss_before < step.loss_cut
        assert step.loss_after <= step.loss_cut
    lines = str(result).splitlines()
    assert lines[0].split() == ["step", "macs", "left", "loss", "after", "cut", "trained"]
    assert lines[1].split()[0] == "1"
    assert lines[1].split()[3:] == ["0", f"{first.loss_cut:.4g}", f"{first.loss_after:.4g}"]


def test_without_held_out_batches_losses_are_of_the_calibration_data() -> None:
    given = shrunk(held_out=batches())
    left_out = shrunk(held_out=None)
    assert same(values(given.model), values(left_out.model))


def test_arguments_of_prune_and_distill_are_passed_on() -> None:
    result = shrunk(prune={"round_to": 4, "ignored_layers": ["stem"]}, distill={"steps": 4, "train": ["head.*"]})
    student = result.model
    assert student.stem.out_features == 12
    assert all(block.up.out_features % 4 == 0 for block in student.blocks)
    first = result.history[0]
    assert first.cut.protocol.arguments["round_to"] == 4


def test_layers_may_be_modules_of_the_model() -> None:
    model = net()
    named = shrunk(prune={"ignored_layers": ["blocks.1.up"]})
    given = shrunk(model, prune={"ignored_layers": [model.blocks[1].up]})
    assert given.model.blocks[1].up.out_features == 16
    assert same(values(named.model), values(given.model))


def test_layers_keep_being_ignored_when_a_cut_renames_them() -> None:
    result = shrunk(prune={"by": "depth", "ignored_layers": ["blocks.2"]}, target={"macs": 0.5})
    assert not result.model.state_dict().keys() & {"blocks.2.up.weight"}
    assert any("blocks.2" not in name for name in result.plan.absent)
    assert all("blocks.2" not in str(branch) for branch in result.plan.absent)


def test_an_optimizer_is_made_for_each_training() -> None:
    seen: list[int] = []

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        seen.append(sum(parameter.numel() for parameter in parameters))
        return torch.optim.SGD(parameters, lr=1e-2)

    result = shrunk(distill={"steps": 4, "optimizer": make})
    assert seen[1] == sum(parameter.numel() for parameter in result.model.parameters()) < seen[0]


def test_progress_counts_the_steps_of_all_trainings() -> None:
    seen: list[tuple[int, int]] = []
    shrunk(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]


def test_epochs_are_of_all_trainings_together() -> None:
    result = shrunk(steps=3, distill={"epochs": 2})
    assert [step.training.steps for step in result.history if step.training] == [4, 4, 4]


def test_the_folder_holds_the_protocol_and_a_checkpoint_of_each_step(tmp_path: Path) -> None:
    result = shrunk(folder=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "protocol.json",
        "step-1.safetensors",
        "step-2.safetensors",
    ]
    assert same(values(pk.load(net(), tmp_path / "run" / "step-2.safetensors")), values(result.model))
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert protocol["request"]["target"] == {"macs": 0.4}
    for stored, step in zip(protocol["steps"], result.history, strict=True):
        assert pk.Plan.from_json(stored["cut"]["plan"]) == step.cut.plan
        assert [stored[name] for name in ("loss_before", "loss_cut", "loss_after")] == [
            step.loss_before,
            step.loss_cut,
            step.loss_after,
        ]
        assert stored["cut"]["costs"]["macs"] == list(step.cut.costs["macs"])


def test_a_finished_folder_gives_the_same_result_again_without_training(tmp_path: Path) -> None:
    first = shrunk(folder=tmp_path / "run")
    calls: list[int] = []
    again = shrunk(folder=tmp_path / "run", progress=lambda done, total: calls.append(done))
    assert calls == []
    assert same(values(first.model), values(again.model))
    assert str(first) == str(again)
    assert first.report == again.report
    assert first.plan == again.plan


def test_a_folder_changes_nothing_in_the_result(tmp_path: Path) -> None:
    assert same(values(shrunk(folder=tmp_path / "run").model), values(shrunk().model))


@pytest.mark.parametrize("moment", [1, 3, 4])
def test_stopped_after_any_training_step_and_resumed_is_as_never_stopped(moment: int, tmp_path: Path) -> None:
    whole = shrunk(folder=tmp_path / "whole")
    with pytest.raises(StoppedError):
        shrunk(folder=tmp_path / "run", progress=stop_after(moment))
    again = shrunk(folder=tmp_path / "run")
    assert_equal(whole, again, tmp_path)


def assert_equal(whole: Shrinking, again: Shrinking, folder: Path) -> None:
    assert same(values(whole.model), values(again.model))
    assert (folder / "whole" / "protocol.json").read_bytes() == (folder / "run" / "protocol.json").read_bytes()
    assert [path.name for path in sorted((folder / "run").iterdir())] == [
        path.name for path in sorted((folder / "whole").iterdir())
    ]


def dying_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets the program die when it gives files their names for so many times; returns what counts them."""
    count = 0
    commit = prunekit_core.files.Files.commit

    def counted(files: prunekit_core.files.Files) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise StoppedError
        commit(files)
        if count == -moment:
            raise StoppedError

    monkeypatch.setattr(prunekit_core.files.Files, "commit", counted)
    return lambda: count


@pytest.mark.slow
def test_killed_before_or_after_any_file_is_written_and_resumed_is_as_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    loader = DataLoader(TensorDataset(inputs(32)), batch_size=16, shuffle=True)
    data = pk.Batches(loader, inputs=lambda batch: batch[0])
    options = {"calibration": data, "train": data, "distill": {"steps": 4, "lr": 1e-2, "save_every": 1}}

    def made(name: str) -> Shrinking:
        return shrunk(model, folder=tmp_path / name, target={"macs": 0.5}, **options)

    with monkeypatch.context() as patch:
        count = dying_at(0, patch)
        whole = made("whole")
        writes = count()
    assert writes > 12
    for moment in [*range(1, writes + 1), *range(-writes, 0)]:
        with monkeypatch.context() as patch:
            dying_at(moment, patch)
            with pytest.raises(StoppedError):
                made(f"run{moment}")
        torch.manual_seed(moment % 100)
        again = made(f"run{moment}")
        assert same(values(whole.model), values(again.model)), moment
        assert str(whole) == str(again)


def test_generators_are_where_they_were() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(inputs(32)), batch_size=16, shuffle=True, generator=generator)
    data = pk.Batches(loader, inputs=lambda batch: batch[0])
    states = torch.get_rng_state(), generator.get_state()
    shrunk(calibration=data, train=data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])


def test_the_same_seed_gives_the_same_model_and_another_one_another() -> None:
    loader = DataLoader(TensorDataset(inputs(64)), batch_size=16, shuffle=True)
    data = pk.Batches(loader, inputs=lambda batch: batch[0])
    found = []
    for seed, disturbance in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(disturbance)
        found.append(values(shrunk(calibration=data, train=data, seed=seed).model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_schedule_says_how_costs_fall() -> None:
    result = shrunk(schedule="linear", steps=3)
    dense = result.history[0].cut.costs["macs"][0]
    assert [step.cut.target["macs"] / dense for step in result.history] == pytest.approx([0.8, 0.6, 0.4])


def test_absolute_targets_and_several_of_them_are_met() -> None:
    result = shrunk(target={"macs": 1200, "weights": "4KB"}, steps=3)
    last = result.history[-1].cut.costs
    assert last["macs"][1] <= 1200
    assert last["weights"][1] <= 4096
    assert sum(p.numel() for p in copy.deepcopy(result.model).parameters()) == last["params"][1]


@pytest.mark.parametrize(
    ("target", "cuts"), [({"macs": 0.5}, 1), ({"macs": 0.25}, 2), ({"macs": 0.5, "params": 0.2}, 2)]
)
def test_a_deep_cut_is_made_in_two_steps_unless_something_else_is_said(target: dict[str, float], cuts: int) -> None:
    assert len(shrunk(target=target, steps=None, distill={"steps": 2}).history) == cuts

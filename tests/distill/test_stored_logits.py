"""Logits on disk teach as the teacher does."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.distill.losses import divergences
from tests.distill.models import Net, batches, inputs, pair, same, values


class Counted(nn.Module):
    """Counts how often a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.model(x)


def test_all_logits_on_disk_teach_as_the_teacher_does(tmp_path: Path) -> None:
    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        """Adam would make steps out of gradients that are rounding errors."""
        return torch.optim.SGD(model.parameters(), lr=0.05)

    live, teacher, _ = pair()
    expected = pk.distill(live, teacher, batches(), steps=12, temperature=3.0, optimizer=sgd(live))
    assert expected.losses["logits"][-1] < 0.9 * expected.losses["logits"][0]
    taught = values(teacher)
    teacher.train()
    assert pk.store_logits(teacher, batches(), tmp_path / "logits", top=5, temperature=3.0) == 6
    assert teacher.training
    assert same(values(teacher), taught)
    student, _, _ = pair()
    found = pk.distill(student, tmp_path / "logits", batches(), steps=12, temperature=3.0, optimizer=sgd(student))
    assert found.losses["logits"] == pytest.approx(expected.losses["logits"], rel=1e-4)
    for name, tensor in values(live).items():
        if name.endswith(("up.bias", "running_mean")):  # a bias in front of a batch norm has no gradient but noise
            continue
        torch.testing.assert_close(student.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_the_largest_logits_are_nearly_as_good(tmp_path: Path) -> None:
    student, teacher, _ = pair()
    x = inputs(64, 1)
    with torch.no_grad():
        before = divergences(student(x), teacher(x), 2.0).mean()
    pk.store_logits(teacher, batches(), tmp_path, top=2)
    result = pk.distill(student, str(tmp_path), batches(), epochs=20, lr=3e-3)
    assert result.losses["logits"][-1] < result.losses["logits"][0] / 3
    with torch.no_grad():
        assert float(divergences(student.eval()(x), teacher(x), 2.0).mean()) < float(before) / 3


def test_examples_may_come_in_other_batches(tmp_path: Path) -> None:
    student, teacher, _ = pair()
    x = inputs(48)
    pk.store_logits(teacher, x.split(16), tmp_path, top=5)
    other = [x[torch.arange(48).flip(0)][start : start + 12] for start in range(0, 48, 12)]
    live, _, _ = pair()
    found = pk.distill(student, tmp_path, other, steps=4)
    expected = pk.distill(live, teacher, other, steps=4)
    assert found.losses["logits"] == pytest.approx(expected.losses["logits"], rel=1e-4)


def test_storing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _, teacher, _ = pair()
    counted = Counted(teacher)
    calls: list[tuple[int, int]] = []
    assert pk.store_logits(counted, batches()[:4], tmp_path) == 4
    assert pk.store_logits(counted, batches(), tmp_path, progress=lambda *call: calls.append(call)) == 2
    assert counted.runs == 6
    assert calls == [(number, 6) for number in range(1, 7)]


def test_the_size_on_disk_is_that_of_the_largest_logits(tmp_path: Path) -> None:
    teacher = nn.Linear(8, 5000)
    pk.store_logits(teacher, [inputs(16)], tmp_path, top=10)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 16 * (10 * 8 + 4) + 4000


def test_an_example_that_the_teacher_never_saw_is_told(tmp_path: Path) -> None:
    student, teacher, _ = pair()
    pk.store_logits(teacher, batches(), tmp_path)
    before = values(student)
    with pytest.raises(pk.ArgumentError, match=r"There are no stored logits of an example.") as caught:
        pk.distill(student, tmp_path, [inputs(16, 77)], steps=3)
    assert caught.value.where.startswith("batch 0, example 0, in ")
    assert same(values(student), before)


def test_another_temperature_and_hidden_states_are_told(tmp_path: Path) -> None:
    student, teacher, plan = pair()
    pk.store_logits(teacher, batches(), tmp_path, temperature=2.0)
    with pytest.raises(pk.ArgumentError, match=r"The stored logits are of another temperature."):
        pk.distill(student, tmp_path, batches(), steps=1, temperature=4.0)
    with pytest.raises(pk.ArgumentError, match=r"Stored logits have no hidden states."):
        pk.distill(student, tmp_path, batches(), plan=plan, steps=1, weights={"hidden": 1})
    with pytest.raises(pk.CheckpointError, match=r"The folder holds logits of another teacher."):
        pk.store_logits(teacher, [inputs(4, 5)], tmp_path, temperature=4.0)


@pytest.mark.parametrize("other", [{"top": 3}, {"temperature": 4.0}])
def test_logits_that_are_stored_otherwise_already_are_told(tmp_path: Path, other: dict[str, float]) -> None:
    _, teacher, _ = pair()
    assert pk.store_logits(teacher, batches(), tmp_path, top=2) == 6
    assert pk.store_logits(teacher, batches(), tmp_path, top=2) == 0
    with pytest.raises(pk.CheckpointError, match=r"The folder holds logits of another teacher."):
        pk.store_logits(teacher, batches(), tmp_path, **{"top": 2, **other})


def test_other_classes_are_told(tmp_path: Path) -> None:
    student, _, _ = pair()
    pk.store_logits(nn.Linear(8, 6), batches(), tmp_path)
    with pytest.raises(pk.ArgumentError, match=r"The outputs of student and teacher don't match."):
        pk.distill(student, tmp_path, batches(), steps=1)


@pytest.mark.parametrize(
    ("options", "headline"),
    [
        ({"top": 0}, "top must be a positive whole number."),
        ({"temperature": -1.0}, "temperature must be a positive number."),
        ({"teacher": "folder"}, "The teacher is a module."),
        ({"batches": []}, "There is nothing in batches."),
        ({"logits": lambda outputs: outputs[:3]}, "The logits of a batch don't lie along its examples."),
    ],
)
def test_wrong_arguments_of_storing_are_told(options: dict[str, object], headline: str, tmp_path: Path) -> None:
    _, teacher, _ = pair()
    given = {"teacher": teacher, "batches": batches(), "folder": tmp_path / "new"} | options
    with pytest.raises(pk.ArgumentError) as caught:
        pk.store_logits(**given)  # type: ignore[arg-type]
    assert caught.value.headline == headline
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_teacher_may_run_from_its_files(tmp_path: Path) -> None:
    """It is never in memory as a whole."""
    _, teacher, _ = pair()
    safetensors.torch.save_file(teacher.state_dict(), str(tmp_path / "teacher.safetensors"))
    with torch.device("meta"):
        empty = Net()
    found = []
    for folder, model, weights in (("memory", teacher, None), ("disk", empty, tmp_path / "teacher.safetensors")):
        pk.store_logits(model, batches(), tmp_path / folder, top=5, weights=weights)
        fresh, _, _ = pair()
        found.append(pk.distill(fresh, tmp_path / folder, batches(), steps=6).losses["logits"])
    assert all(tensor.is_meta for tensor in empty.parameters())
    assert found[1] == pytest.approx(found[0], rel=1e-4)

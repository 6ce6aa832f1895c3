"""What is wrong is told before anything is changed, and nothing is lost where a run breaks off."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.distill import distill
from tests.distill.models import Net, StoppedError, batches, inputs, net, pair, same, stop_after, values

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown loss": ({"weights": {"logit": 1}}, "There is no such loss."),
    "no loss": ({"weights": {"logits": 0}}, "All losses have the weight 0."),
    "a negative weight": ({"weights": {"logits": -1}}, "The weight of a loss is a number of at least 0."),
    "weights that are none": ({"weights": "logits"}, "weights maps losses to their weights."),
    "hidden states without a plan": ({"weights": {"hidden": 1}}, "Hidden states are matched by the plan."),
    "a plan that is none": ({"plan": "plan"}, "plan is a Plan."),
    "steps and epochs": ({"steps": 1, "epochs": 1}, "Give steps or epochs, not both."),
    "no steps": ({"steps": 0}, "steps must be a positive whole number."),
    "a temperature of zero": ({"temperature": 0}, "temperature must be a positive number."),
    "an endless warm-up": ({"warm_up": 1}, "warm_up is a part of the steps, in [0, 1)."),
    "an unknown schedule": ({"schedule": "linear"}, "There is no schedule called 'linear'."),
    "an unknown precision": ({"precision": "fp8"}, "There is no precision called 'fp8'."),
    "patience without data": ({"patience": 1}, "patience needs held-out batches."),
    "evaluations without data": ({"evaluate_every": 1}, "evaluate_every needs held-out batches."),
    "a seed that is none": ({"seed": 0.5}, "seed must be a whole number."),
    "an optimizer that is none": ({"optimizer": "adam"}, "optimizer is an optimizer."),
    "a function that is none": ({"loss_fn": 3}, "loss_fn is a function."),
    "an empty held-out set": ({"held_out": []}, "There is nothing in held_out."),
    "a single held-out batch": ({"held_out": inputs(4)}, "held_out must be an iterable of batches."),
    "no labels": ({"weights": {"labels": 1}}, "A batch has no labels, which a loss needs."),
    "labels of another shape": (
        {"weights": {"labels": 1}, "labels": lambda batch: torch.zeros(3, dtype=torch.long)},
        "The labels don't fit the logits.",
    ),
    "a loss with dims": ({"weights": {"labels": 1}, "loss_fn": lambda o, b: o}, "loss_fn must return a scalar tensor."),
    "logits that are none": ({"logits": lambda outputs: 3}, "Logits are a tensor of real numbers"),
    "classes along no dim": ({"class_dim": 4}, "The logits have no such dim."),
    "an unknown way to train": ({"train": "norm"}, 'train is "all", "norms", "lora"'),
    "a number as what is trained": ({"train": 3}, 'train is "all", "norms", "lora"'),
    "names that there aren't": ({"train": ["tail.*"]}, "No parameter has that name."),
    "nothing to train": ({"train": lambda name, parameter: False}, "There is nothing to train."),
    "a foreign optimizer": (
        {"optimizer": torch.optim.SGD(net().parameters(), lr=0.1)},
        "The optimizer trains no parameter of the student",
    ),
    "no such folder": ({"teacher": "nowhere"}, "The folder holds no stored logits."),
    "a teacher that is none": ({"teacher": 3}, "The teacher is a module, or the folder of stored logits."),
    "a teacher of other outputs": ({"teacher": nn.Linear(8, 6)}, "The outputs of student and teacher don't match."),
    "no batches": ({"batches": []}, "There is nothing in batches."),
    "one batch": ({"batches": inputs(4)}, "batches must be an iterable of batches."),
    "a used iterator": ({"batches": iter(())}, "There is nothing in batches."),
    "a student that is none": ({"student": 3}, "The student is a module."),
}


@pytest.mark.parametrize(("wrong", "headline"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_is_told_and_nothing_is_changed(wrong: dict[str, Any], headline: str) -> None:
    student, teacher, _ = pair()
    student.train()
    before, modes = values(student), [module.training for module in student.modules()]
    calls: list[int] = []
    given: dict[str, Any] = {"student": student, "teacher": teacher, "batches": batches()} | wrong
    if "epochs" not in given and "steps" not in given:
        given["steps"] = 2
    with pytest.raises((pk.ArgumentError, pk.CheckpointError)) as caught:
        distill(**given, progress=lambda done, total: calls.append(done))
    assert caught.value.headline.startswith(headline)
    assert calls == []
    assert same(values(student), before)
    assert [module.training for module in student.modules()] == modes


class Language(nn.Module):
    """Reads ids and puts out a logit for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 50)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(self.embed(ids)).relu())
        return found


def test_a_student_of_a_cut_vocabulary_is_told_and_taught_by_its_map() -> None:
    torch.manual_seed(0)
    whole, kept = Language().double().eval(), [*range(5, 20), 30, 44]
    student, texts = copy.deepcopy(whole), torch.tensor(kept)[torch.randint(len(kept), (3, 4, 6))]
    vocabulary = pk.prune_vocabulary(student, kept, texts[0])
    ids = [vocabulary.ids.of(text) for text in texts]
    narrow = pk.prune(student, ids[0], ratio=0.5)
    with pytest.raises(pk.ArgumentError, match=r"The outputs of student and teacher don't match.") as caught:
        distill(student, whole, ids, steps=1)
    assert "vocabulary.plan.apply(teacher)" in str(caught.value.hint)
    with torch.no_grad():  # the logits of the tokens that stay, for the texts with their old ids
        wanted = whole(texts[0])[..., kept]
        expected = nn.functional.kl_div(
            (student(ids[0]) / 2).log_softmax(-1), (wanted / 2).softmax(-1), reduction="none"
        ).sum(-1)
    teacher = vocabulary.plan.apply(copy.deepcopy(whole))
    result = distill(student, teacher, ids, steps=1, plan=narrow.plan, weights={"logits": 1, "hidden": 1},
                     hidden=["layer"])  # fmt: skip
    assert result.losses["logits"][0] == pytest.approx(4 * float(expected.mean()), rel=1e-6)


def test_a_teacher_that_is_the_student_is_told() -> None:
    student, _, _ = pair()
    with pytest.raises(pk.ArgumentError, match=r"The teacher shares parameters with the student."):
        distill(student, student, batches(), steps=1)
    shallow = copy.copy(student)
    with pytest.raises(pk.ArgumentError, match=r"The teacher shares parameters with the student."):
        distill(student, shallow, batches(), steps=1)


def test_a_student_that_was_never_cut_is_told() -> None:
    student, teacher, plan = pair()
    with pytest.raises(pk.ArgumentError, match=r"The student is the model before the cut\."):
        distill(teacher, student, batches(), plan=plan, steps=1)
    with pytest.raises(pk.ArgumentError, match=r"The student is the model before the cut\."):
        pk.DistillationLoss(copy.deepcopy(teacher), teacher, batches(), plan=plan)


def test_a_student_that_is_larger_than_its_teacher_is_doubted_before_the_first_step() -> None:
    small, large, _ = pair()
    before, counts = values(large), [sum(p.numel() for p in model.parameters()) for model in (large, small)]
    calls: list[int] = []
    doubt = f"the student has more parameters than the teacher ({counts[0]:,} and {counts[1]:,}): are they swapped?"
    with pytest.raises(UserWarning, match=re.escape(doubt)):  # warnings are errors here
        distill(large, small, batches(), steps=1, progress=lambda done, total: calls.append(done))
    assert calls == []
    assert same(values(large), before)
    with pytest.warns(UserWarning, match="swapped") as told:
        result = distill(large, small, batches(), steps=1)
    assert told[0].filename == __file__
    assert [note for note in result.notes if note.startswith(doubt)]


def test_a_teacher_that_the_plan_was_not_made_for_is_doubted() -> None:
    student, _, plan = pair()
    with pytest.warns(UserWarning, match=r"the teacher is not the model that the plan was made for: .* has shape"):
        result = distill(student, Net(width=40), batches(), plan=plan, steps=1)
    assert any(note.startswith("the teacher is not the model") for note in result.notes)


@pytest.mark.parametrize("where", ["batches", "held_out"])
def test_labels_that_never_count_are_told(where: str) -> None:
    student, teacher, _ = pair()
    before = values(student)
    counting = [(x, torch.full((16,), 3)) for x in batches()]
    ignored = [(x, torch.full((16,), -100)) for x in batches()]

    def read(source: list[tuple[Tensor, Tensor]]) -> pk.Batches:
        return pk.Batches(source, inputs=lambda batch: batch[0])

    given = {"batches": read(counting), "held_out": read(counting)} | {where: read(ignored)}
    options: dict[str, Any] = {"weights": {"logits": 1, "labels": 1}, "labels": lambda batch: batch[1], "steps": 1}
    with pytest.raises(pk.ArgumentError, match=f"No label in {where} counts") as caught:
        distill(student, teacher, **given, **options)
    assert "-100" in caught.value.why
    assert same(values(student), before)
    mixed = {**given, where: read([*ignored[:3], counting[3]])}  # some that count are enough
    assert distill(student, teacher, **mixed, **options).steps == 1


def test_maps_of_classes_say_where_the_classes_are() -> None:
    student, teacher = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
    images = [torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(pk.ArgumentError, match=r"It isn't known which dim of the logits the classes lie along."):
        distill(student, teacher, images, steps=1)
    labels = torch.full((2, 4, 6), 3)
    result = distill(
        student, teacher, images, steps=300, lr=0.05, class_dim=1, weights={"logits": 1, "labels": 0.01},
        labels=lambda batch: labels,
    )  # fmt: skip
    assert result.losses["logits"][-1] < 0.01 < result.losses["logits"][0]


class Several(nn.Module):
    """Returns a mapping without logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.layer(x)
        return {"scores": found, "boxes": found * 2, "count": torch.ones(3, dtype=torch.long)}


def test_outputs_without_logits_want_a_function() -> None:
    with pytest.raises(pk.ArgumentError, match=r"It isn't known which output holds the logits.") as caught:
        distill(Several(), Several(), batches(), steps=1)
    assert caught.value.why == "there are 'scores', 'boxes'"
    assert caught.value.hint.startswith('weights={"hidden": 1} compares hidden states instead; in')
    result = distill(Several(), Several(), batches(), steps=1, logits=lambda outputs: outputs["scores"])
    assert result.steps == 1


def test_epochs_of_an_unknown_length_want_steps() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            yield from batches()

    student, teacher, _ = pair()
    with pytest.raises(pk.ArgumentError, match=r"The number of steps isn't known."):
        distill(student, teacher, Endless())
    assert distill(student, teacher, Endless(), steps=8).steps == 8


def poisoned(at: int) -> list[Tensor]:
    data = batches(6)
    data[at] = data[at] * float("nan")
    return data


def test_a_loss_that_is_not_finite_ends_the_run_with_the_best_state() -> None:
    student, teacher, _ = pair()
    held_out = [inputs(32, 9)]
    result = distill(student, teacher, poisoned(4), epochs=3, lr=1e-2, held_out=held_out, evaluate_every=1, warm_up=0)
    assert result.steps == 4
    assert result.stopped == "step 5: the loss 'logits' is nan on batch 4 of epoch 0"
    assert result.best_step == min(result.held_out, key=lambda pair: pair[1])[0] > 0
    assert all(bool(tensor.isfinite().all()) for tensor in values(student).values())
    best = dict(result.held_out)[result.best_step]
    again = distill(student, teacher, batches(), steps=1, lr=1e-9, held_out=held_out, freeze_batchnorm=True)
    assert again.held_out[0][1] == pytest.approx(best, rel=1e-6)


def test_without_held_out_batches_the_last_good_state_is_kept() -> None:
    student, teacher, _ = pair()
    whole, _, _ = pair()
    result = distill(student, teacher, poisoned(4), steps=9, lr=1e-2, schedule="constant")
    distill(whole, teacher, batches(6), steps=4, lr=1e-2, schedule="constant")
    assert (result.steps, result.best_step) == (4, 4)
    assert same(values(student), values(whole))


def test_a_first_loss_that_is_not_finite_is_an_error() -> None:
    student, teacher, _ = pair()
    before = values(student)
    with pytest.raises(pk.ArgumentError, match=r"The loss isn't finite at the first step.") as caught:
        distill(student, teacher, poisoned(0), steps=9)
    assert caught.value.where == "the loss 'logits' is nan on batch 0 of epoch 0"
    assert same(values(student), before)


def test_held_out_batches_whose_loss_is_not_finite_are_told_before_the_first_step() -> None:
    student, teacher, _ = pair()
    before, calls = values(student), []
    with pytest.raises(pk.ArgumentError, match=r"The loss isn't finite on the held-out batches.") as caught:
        distill(student, teacher, batches(), steps=2, held_out=poisoned(3), progress=lambda *call: calls.append(call))
    assert caught.value.where == "held out, batch 3"
    assert caught.value.why is not None
    assert caught.value.why.startswith("it is nan before the first step")
    assert calls == []
    assert same(values(student), before)


def test_a_held_out_loss_that_is_no_longer_finite_ends_the_run_with_the_best_state() -> None:
    student, teacher, _ = pair()
    seen: list[dict[str, Tensor]] = []
    held_out, evaluations = batches(3), 0

    class Later:
        def __iter__(self) -> Iterator[Tensor]:
            nonlocal evaluations
            evaluations += 1  # one look at whether there is something, one before the first step, one after each
            yield from held_out if evaluations < 7 else [held_out[0], held_out[1] * float("inf")]

    result = distill(
        student, teacher, batches(), steps=20, lr=1e-2, warm_up=0, held_out=Later(), evaluate_every=1,
        progress=lambda done, total: seen.append(values(student)),
    )  # fmt: skip
    assert result.diverged
    assert result.stopped == f"step {result.steps}: the held-out loss is nan on batch 1"
    assert 1 < result.steps < 6
    assert [step for step, _ in result.held_out] == list(range(result.steps))
    assert result.best_step == min(result.held_out, key=lambda pair: pair[1])[0] > 0
    assert same(values(student), seen[result.best_step - 1])


def test_gradients_that_are_not_finite_end_the_run() -> None:
    student, teacher, _ = pair()
    calls = 0

    def loss(outputs: Tensor, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = outputs.square().mean()
        return (found - found.detach()).sqrt() if calls == 4 else found  # the slope of the root at 0

    result = distill(student, teacher, batches(), loss_fn=loss, weights={"labels": 1}, steps=6)
    assert result.stopped == "step 3: the gradients aren't finite on batch 2 of epoch 0"
    assert all(bool(tensor.isfinite().all()) for tensor in values(student).values())


def test_a_loss_without_gradients_is_told() -> None:
    student, teacher, _ = pair()
    before = values(student)
    with pytest.raises(pk.ArgumentError, match=r"The loss doesn't depend on what is trained."):
        distill(
            student, teacher, batches(), loss_fn=lambda o, b: o.detach().mean(), weights={"labels": 1}, steps=6,
            freeze_batchnorm=True,
        )  # fmt: skip
    assert same(values(student), before)


def test_an_exception_leaves_the_student_as_it_was_or_as_it_was_best() -> None:
    student, teacher, _ = pair()
    before = values(student)
    with pytest.raises(StoppedError):
        distill(student, teacher, batches(), steps=6, lr=1e-2, progress=stop_after(4))
    assert same(values(student), before)
    with pytest.raises(StoppedError):
        distill(
            student, teacher, batches(), steps=6, lr=1e-2, held_out=[inputs(64, 9)], evaluate_every=1,
            progress=stop_after(4),
        )  # fmt: skip
    assert not same(values(student), before)
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_checkpoint_of_another_run_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    student, teacher, _ = pair()
    distill(student, teacher, batches(), steps=4, checkpoint=file)
    before = values(student)
    with pytest.raises(pk.CheckpointError, match=r"The checkpoint is of another run.") as caught:
        distill(student, teacher, batches(), steps=5, checkpoint=file)
    assert caught.value.why == "steps was 4, and is 5"
    narrow, _, _ = pair(ratio=0.25)
    with pytest.raises(pk.CheckpointError, match=r"The checkpoint is of another student."):
        distill(narrow, teacher, batches(), steps=4, checkpoint=file)
    assert same(values(student), before)


def test_a_checkpoint_of_longer_epochs_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    student, teacher, _ = pair()
    distill(student, teacher, batches(), steps=4, checkpoint=file)
    before = values(student)
    with pytest.raises(pk.CheckpointError, match=r"The checkpoint is of another run.") as caught:
        distill(student, teacher, batches()[:3], steps=4, checkpoint=file)
    assert caught.value.why == "it had read 4 batches of an epoch, and an epoch has 3"
    assert same(values(student), before)


@pytest.mark.parametrize("damage", ["cut short", "another file"])
def test_a_damaged_checkpoint_is_told(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    student, teacher, _ = pair()
    distill(student, teacher, batches(), steps=4, checkpoint=file)
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        safetensors.torch.save_file({"x": torch.ones(2)}, str(file))
    before = values(student)
    with pytest.raises(pk.CheckpointError):
        distill(student, teacher, batches(), steps=4, checkpoint=file)
    assert same(values(student), before)


def test_an_optimizer_whose_state_is_no_data_is_told(tmp_path: Path) -> None:
    student, teacher, _ = pair()

    class Odd(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            self.state[self.param_groups[0]["params"][0]]["memory"] = [1, 2]

    before = values(student)
    with pytest.raises(pk.CheckpointError, match=r"The state of the optimizer can't be stored."):
        distill(
            student, teacher, batches(), steps=1, optimizer=Odd(student.parameters(), lr=0.1),
            checkpoint=tmp_path / "run.safetensors",
        )  # fmt: skip
    assert same(values(student), before)


def test_a_checkpoint_that_can_not_be_written_is_told_before_the_first_step(tmp_path: Path) -> None:
    student, teacher, _ = pair()
    calls: list[int] = []
    with pytest.raises(pk.StorageError):
        distill(
            student, teacher, batches(), steps=2, checkpoint=tmp_path / "nowhere" / "run.safetensors",
            progress=lambda done, total: calls.append(done),
        )  # fmt: skip
    assert calls == []


def test_a_batch_that_does_not_fit_is_told_and_what_was_learnt_is_kept() -> None:
    student, teacher, _ = pair()
    data = [*batches(3), torch.randn(4, 9)]
    states: list[dict[str, Tensor]] = []
    with pytest.raises(pk.ArgumentError) as caught:
        distill(
            student,
            teacher,
            data,
            steps=8,
            lr=1e-2,
            held_out=batches(2),
            evaluate_every=1,
            progress=lambda done, total: states.append(values(student)),
        )
    assert caught.value.headline == "The model's forward pass raised on a batch."
    assert caught.value.where == "batch 3"
    assert "its inputs are (4, 9) float32, and those of a batch that ran were (16, 8) float32" in caught.value.why
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(states) == 3
    assert any(same(values(student), state) for state in states)


def test_memory_that_runs_out_is_no_fault_of_the_batch() -> None:
    student, teacher, _ = pair()

    def full(module: nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    student.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        distill(student, teacher, batches(), steps=1)


@pytest.mark.parametrize("wrong", [5, -1])
def test_a_label_that_is_no_class_is_told_with_its_place(wrong: int) -> None:
    student, teacher, _ = pair()
    before = values(student)
    labels = [torch.zeros(16, dtype=torch.long), torch.tensor([0] * 3 + [-100, wrong] + [4] * 11)]
    data = pk.Batches(list(zip(batches(2), labels, strict=True)), inputs=lambda batch: batch[0])
    with pytest.raises(pk.ArgumentError) as caught:
        distill(student, teacher, data, labels=lambda batch: batch[1], weights={"labels": 1}, steps=4)
    assert caught.value.headline == "A label is no class."
    assert caught.value.where == "batch 1, position 4"
    assert caught.value.why == f"it is {wrong}, and there are 5 classes, counted from 0"
    assert same(values(student), before)


def test_a_run_does_not_go_on_with_another_teacher(tmp_path: Path) -> None:
    student, teacher, plan = pair()
    options: dict[str, Any] = {"steps": 4, "checkpoint": tmp_path / "run.safetensors", "save_every": 1}
    with pytest.raises(StoppedError):
        distill(student, teacher, batches(), **options, progress=stop_after(2))
    other = net(1)
    with pytest.raises(pk.CheckpointError, match="The checkpoint is of another run") as caught:
        distill(plan.apply(net()), other, batches(), **options)
    assert "teacher was " in caught.value.why
    assert distill(plan.apply(net()), net(), batches(), **options).steps == 4


def test_logits_of_another_teacher_are_not_mixed_into_a_folder(tmp_path: Path) -> None:
    pk.store_logits(net(), batches(2), tmp_path / "logits", top=3)
    with pytest.raises(pk.CheckpointError, match="The folder holds logits of another teacher") as caught:
        pk.store_logits(net(1), batches(3), tmp_path / "logits", top=3)
    assert caught.value.why == "they were stored by a model with other weights"
    assert pk.store_logits(net(), batches(3), tmp_path / "logits", top=3) == 1


def test_a_run_with_stored_logits_does_not_go_on_with_those_of_another_teacher(tmp_path: Path) -> None:
    for seed in (0, 1):
        pk.store_logits(net(seed), batches(), tmp_path / f"logits{seed}", top=3)
    options: dict[str, Any] = {"steps": 4, "checkpoint": tmp_path / "run.safetensors", "save_every": 1}
    student, _, plan = pair()
    with pytest.raises(StoppedError):
        distill(student, tmp_path / "logits0", batches(), **options, progress=stop_after(2))
    with pytest.raises(pk.CheckpointError, match="teacher was "):
        distill(plan.apply(net()), tmp_path / "logits1", batches(), **options)

"""A student learns from its teacher: what is trained, what is kept, what is put back."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit_plugins.distill import distill
from prunekit_plugins.distill.losses import divergences
from tests.distill.models import StoppedError, batches, inputs, pair, same, stop_after, values


def distance(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    student.eval()
    with torch.no_grad():
        return float(divergences(student(x), teacher(x), 2.0).mean())


def test_a_student_gets_closer_to_its_teacher() -> None:
    student, teacher, plan = pair()
    before, taught = distance(student, teacher, inputs(64, 1)), values(teacher)
    result = distill(student, teacher, batches(), plan=plan, weights={"logits": 1, "hidden": 0.5}, epochs=20, lr=3e-3)
    assert distance(student, teacher, inputs(64, 1)) < before / 3
    assert same(values(teacher), taught)
    assert result.model is student
    assert result.steps == result.best_step == 120
    assert {name: len(losses) for name, losses in result.losses.items()} == {"logits": 120, "hidden": 120}
    assert str(result).startswith("120 steps\n  logits: ")


def by_hand(student: nn.Module, teacher: nn.Module, data: list[Tensor], steps: int, rate: float) -> None:
    """The same training, written down plainly: AdamW, two batches a step, clipping, a cosine without warm-up."""
    matrices = [p for p in student.parameters() if p.dim() > 1]
    others = [p for p in student.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}])
    student.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        for part in range(2):
            x = data[(2 * step + part) % len(data)]
            with torch.no_grad():
                wanted = (teacher(x) / 3).log_softmax(-1)
            own = (student(x) / 3).log_softmax(-1)
            (9 * F.kl_div(own, wanted, reduction="batchmean", log_target=True) / 2).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        optimizer.step()


def test_the_loop_is_the_one_that_one_would_write() -> None:
    student, teacher, _ = pair()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(student)
    data = batches(5)
    by_hand(plain, teacher, data, 7, 1e-2)
    distill(student, teacher, data, temperature=3.0, steps=7, lr=1e-2, warm_up=0, accumulate=2, clip=0.5)
    for name, tensor in values(plain).items():
        torch.testing.assert_close(student.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_labels_count_where_they_have_a_weight() -> None:
    student, teacher, _ = pair()
    target = torch.zeros(96, dtype=torch.long)
    data = list(zip(inputs(96).split(16), target.split(16), strict=True))
    result = distill(
        student,
        teacher,
        pk.Batches(data, inputs=lambda batch: batch[0]),
        labels=lambda batch: batch[1],
        weights={"labels": 1},
        epochs=10,
        lr=1e-2,
    )
    assert student.eval()(inputs(32, 3)).argmax(1).tolist() == [0] * 32
    assert result.losses["labels"][-1] < 0.1 < result.losses["labels"][0]


def test_a_loss_of_ones_own_is_given_outputs_and_batch() -> None:
    student, teacher, _ = pair()
    seen: list[Any] = []

    def loss(outputs: Tensor, batch: Tensor) -> Tensor:
        seen.append((tuple(outputs.shape), batch))
        return outputs.square().mean()

    data = batches(2)
    result = distill(student, teacher, data, loss_fn=loss, weights={"labels": 2.0}, steps=2)
    assert [shape for shape, _ in seen] == [(16, 5)] * 3
    assert all(any(given is batch for batch in data) for _, given in seen)
    assert len(result.losses["labels"]) == 2


def test_the_same_seed_gives_the_same_student_and_another_one_another() -> None:
    found = []
    for seed, disturbance in ((1, 0), (1, 7), (2, 0)):
        student, teacher, _ = pair()
        torch.manual_seed(disturbance)
        loader = DataLoader(TensorDataset(inputs(96)), batch_size=16, shuffle=True)
        distill(student, teacher, pk.Batches(loader, inputs=lambda b: b[0]), steps=9, seed=seed)
        found.append(values(student))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_generators_are_where_they_were() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(inputs(32)), batch_size=16, shuffle=True, generator=generator)
    states = (torch.get_rng_state(), random.getstate(), generator.get_state())
    student, teacher, _ = pair()
    distill(student, teacher, pk.Batches(loader, inputs=lambda b: b[0]), steps=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(generator.get_state(), states[2])


def test_modes_flags_and_gradients_are_put_back() -> None:
    student, teacher, _ = pair()
    student.train()
    student.blocks[0].eval()
    teacher.train()
    student.stem.weight.requires_grad_(False)
    student.head.weight.grad = torch.ones_like(student.head.weight)
    frozen = student.stem.weight.clone()
    modes = [module.training for model in (student, teacher) for module in model.modules()]
    result = distill(student, teacher, batches(), steps=3, lr=1e-2)
    assert [module.training for model in (student, teacher) for module in model.modules()] == modes
    assert result.notes == ("the teacher was in train mode; it ran in eval mode",)
    assert torch.equal(student.stem.weight, frozen)
    assert not student.stem.weight.requires_grad
    assert student.head.weight.grad is not None
    assert bool((student.head.weight.grad == 1).all())
    assert student.stem.bias.grad is None
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("norms", {"bias", "norm"}),
        (["head.*"], {"head"}),
        (lambda name, parameter: name == "stem.weight", {"stem.weight"}),
    ],
    ids=["norms", "patterns", "function"],
)
def test_only_what_is_chosen_is_trained(train: Any, expected: set[str]) -> None:
    student, teacher, _ = pair()
    before = values(student)
    distill(student, teacher, batches(), steps=3, lr=1e-2, train=train, freeze_batchnorm=True)
    after = values(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name
        for name in before
        if "running" not in name and any(part in name for part in expected) and "num_batches" not in name
    }


def test_batch_norms_follow_the_batches_unless_they_are_frozen() -> None:
    found = []
    for frozen in (False, True):
        student, teacher, _ = pair()
        before = values(student)
        distill(student, teacher, batches(), steps=3, freeze_batchnorm=frozen)
        found.append(
            bool(torch.equal(values(student)["blocks.0.norm.running_mean"], before["blocks.0.norm.running_mean"]))
        )
    assert found == [False, True]


def test_the_best_state_is_kept() -> None:
    """Trained on wrong inputs at a wild rate, the student as it came is the best one."""
    student, teacher, _ = pair()
    before = values(student)
    result = distill(
        student,
        teacher,
        [batch * 40 for batch in batches()],
        steps=20,
        lr=0.5,
        schedule="constant",
        held_out=[inputs(32, 9)],
        evaluate_every=2,
    )
    assert [step for step, _ in result.held_out] == list(range(0, 21, 2))
    assert min(result.held_out, key=lambda pair: pair[1])[0] == result.best_step == 0
    assert same(values(student), before)


def test_a_run_without_progress_ends_early() -> None:
    student, teacher, _ = pair()
    result = distill(
        student,
        teacher,
        [batch * 40 for batch in batches()],
        steps=20,
        lr=0.5,
        held_out=[inputs(32, 9)],
        evaluate_every=2,
        patience=3,
    )
    assert result.steps == 6
    assert result.stopped == "step 6: no better on the held-out batches since step 0"


def test_the_loss_on_held_out_batches_is_a_mean_over_examples() -> None:
    student, teacher, _ = pair()
    x = inputs(48, 4)
    result = distill(student, teacher, batches(), steps=1, held_out=[x[:40], x[40:]])
    fresh, _, _ = pair()
    assert result.held_out[0][1] == pytest.approx(distance(fresh, teacher, x), rel=1e-5)


def test_an_optimizer_of_ones_own_is_used_and_left_as_it_was_set() -> None:
    student, teacher, _ = pair()
    optimizer = torch.optim.SGD(student.head.parameters(), lr=0.1, momentum=0.9)
    before = values(student)
    distill(student, teacher, batches(), steps=4, optimizer=optimizer, freeze_batchnorm=True)
    changed = {name for name, tensor in values(student).items() if not torch.equal(before[name], tensor)}
    assert changed == {"head.weight", "head.bias"}
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer.state) == 2


def test_progress_is_shown_step_by_step() -> None:
    student, teacher, _ = pair()
    calls: list[tuple[int, int]] = []
    distill(student, teacher, batches(), steps=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_half_precision_trains_single_precision_weights() -> None:
    student, teacher, plan = pair()
    before = distance(student, teacher, inputs(64, 1))
    distill(
        student, teacher, batches(), plan=plan, weights={"logits": 1, "hidden": 1}, epochs=20, lr=3e-3, precision="bf16"
    )
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert distance(student, teacher, inputs(64, 1)) < before / 2


class Loader:
    """Batches that are made while they are read, with random noise."""

    def __init__(self) -> None:
        self.data = batches(4)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.data:
            yield batch + 0.1 * torch.randn_like(batch) + random.random()


@pytest.mark.parametrize("kill", [1, 2, 3, 5, 8, 9])
def test_killed_at_any_step_and_resumed_is_never_killed(tmp_path: Path, kill: int) -> None:
    options: dict[str, Any] = {
        "steps": 9, "accumulate": 3, "lr": 1e-2, "held_out": [inputs(32, 9)], "evaluate_every": 2, "save_every": 1,
        "weights": {"logits": 1, "hidden": 1},
    }  # fmt: skip
    whole, teacher, plan = pair()
    expected = distill(whole, teacher, Loader(), plan=plan, **options)
    student, teacher, _ = pair()
    file = tmp_path / "run.safetensors"
    with pytest.raises(StoppedError):
        distill(student, teacher, Loader(), plan=plan, **options, checkpoint=file, progress=stop_after(kill))
    fresh, teacher, _ = pair()
    torch.manual_seed(123)
    found = distill(fresh, teacher, Loader(), plan=plan, **options, checkpoint=file)
    assert same(values(fresh), values(whole))
    assert (found.losses, found.held_out, found.best_step) == (expected.losses, expected.held_out, expected.best_step)


def test_a_run_goes_on_from_its_last_save(tmp_path: Path) -> None:
    whole, teacher, _ = pair()
    distill(whole, teacher, Loader(), steps=9)
    student, teacher, _ = pair()
    file = tmp_path / "run.safetensors"
    with pytest.raises(StoppedError):
        distill(student, teacher, Loader(), steps=9, checkpoint=file, save_every=4, progress=stop_after(7))
    steps: list[int] = []
    fresh, teacher, _ = pair()
    distill(
        fresh, teacher, Loader(), steps=9, checkpoint=file, save_every=4, progress=lambda done, _: steps.append(done)
    )
    assert steps == [5, 6, 7, 8, 9]
    assert same(values(fresh), values(whole))


def test_a_run_that_is_done_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    student, teacher, _ = pair()
    first = distill(student, teacher, batches(), steps=4, checkpoint=file)
    fresh, teacher, _ = pair()
    calls: list[int] = []
    again = distill(fresh, teacher, batches(), steps=4, checkpoint=file, progress=lambda done, _: calls.append(done))
    assert calls == []
    assert same(values(fresh), values(student))
    assert again.losses == first.losses


def test_a_loss_that_rose_is_told() -> None:
    student, teacher, plan = pair()
    turn = itertools.count(1)

    def rising(outputs: Tensor, batch: Any) -> Tensor:
        return outputs.sum() * 0 + next(turn)

    worse = distill(student, teacher, batches(), plan=plan, epochs=5, loss_fn=rising, weights={"labels": 1})
    first, last = (sum(part) / 3 for part in (worse.losses["labels"][:3], worse.losses["labels"][-3:]))
    assert last > first
    (note,) = worse.notes
    assert note.startswith(f"the loss rose, from {first:.4g} to {last:.4g}: a lower learning rate")
    assert f"  labels: {first:.4g} -> {last:.4g} (it rose)" in str(worse).splitlines()
    student, teacher, plan = pair()
    better = distill(student, teacher, batches(), plan=plan, epochs=5, lr=3e-3)
    assert better.notes == ()
    assert "rose" not in str(better)


def test_a_student_that_stays_as_it_came_is_told() -> None:
    student, teacher, plan = pair()
    before = values(student)
    result = distill(student, teacher, batches(), plan=plan, steps=2, lr=3.0, held_out=batches())
    assert result.best_step == 0
    assert same(values(student), before)
    assert [note[:65] for note in result.notes] == ["the held-out loss was never lower than before: the student is as "]

"""What is wrong is told before anything is trained or written, and nothing is lost where a shrinking breaks off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.regularizers import GroupNormRegularizer
from prunekit_plugins.shrink import Shrinking, shrink
from tests.distill.models import batches, inputs, same, values


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def made(model: nn.Module | None = None, **options: Any) -> Shrinking:
    given: dict[str, Any] = {
        "target": {"macs": 0.5},
        "calibration": batches(2),
        "train": batches(2),
        "steps": 2,
        "distill": {"steps": 4, "lr": 1e-2, "save_every": 1},
    }
    return shrink(small() if model is None else model, inputs(2), **(given | options))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no calibration data": ({"calibration": []}, "There is nothing in calibration."),
    "no training data": ({"train": []}, "There is nothing in train."),
    "a used iterator": ({"train": iter(())}, "There is nothing in train."),
    "no held-out data": ({"held_out": []}, "There is nothing in held_out."),
    "held-out data that isn't finite": (
        {"held_out": [inputs(4) * float("nan")]},
        "The loss isn't finite on the held-out batches.",
    ),
    "a single batch": ({"train": inputs(4)}, "train must be an iterable of batches."),
    "batches of another shape": ({"train": [torch.randn(4, 9)]}, "The model's forward pass raised on a batch."),
    "no labels": ({"distill": {"weights": {"labels": 1}}}, "A batch has no labels, which a loss needs."),
    "a target that is met": ({"target": {"macs": 1.0}}, "The model meets the target as it is."),
    "a large target": ({"target": {"params": 1e6}}, "The model meets the target as it is."),
    "a target out of reach": ({"target": {"macs": 0.01}}, "The target can't be reached."),
    "an empty target": ({"target": {}}, "The target is empty."),
    "an unknown cost": ({"target": {"mac": 0.5}}, "No cost model is registered as 'mac'."),
    "no steps": ({"steps": 0}, "steps must be a positive whole number."),
    "less training than cuts": ({"distill": {"steps": 1}}, "There are fewer training steps than cuts."),
    "an unknown schedule": ({"schedule": "curve"}, "No schedule is registered as 'curve'."),
    "an unknown argument of prune": ({"prune": {"round_too": 2}}, "prune has no argument called 'round_too'."),
    "an unknown argument of distill": ({"distill": {"lrr": 2}}, "distill has no argument called 'lrr'."),
    "a wrong argument of distill": ({"distill": {"lr": -1}}, "lr must be a positive number."),
    "a ratio": ({"prune": {"ratio": 0.5}}, "This argument is about a single cut."),
    "steps of a pruner": ({"prune": {"iterative_steps": 2}}, "This argument is about a single cut."),
    "a target among the arguments": ({"prune": {"target": {}}}, "shrink gives prune this argument itself."),
    "a checkpoint": ({"distill": {"checkpoint": "x"}}, "shrink gives distill this argument itself."),
    "arguments without names": ({"distill": [1]}, "distill holds arguments of distill by their names."),
    "an unknown layer": ({"prune": {"ignored_layers": ["head"]}}, "The model has no module named 'head'."),
    "an optimizer of the model": (
        {"distill": {"optimizer": torch.optim.SGD(small().parameters(), lr=0.1)}},
        "The optimizer of shrink is a function of parameters.",
    ),
    "a regularizer of the model": (
        {"distill": {"regularizer": GroupNormRegularizer(pk.Graph.of(small(), inputs(2)).get_all_groups)}},
        "The regularizer of shrink is a name, a table, or a function of groups.",
    ),
    "a regularizer and no next cut": (
        {"distill": {"regularizer": "group_norm"}, "steps": 1},
        "A regularizer prepares the next cut, and there is one cut only.",
    ),
    "a model without weights": ({"model": small().to("meta")}, "The model has no weights."),
}


@pytest.mark.parametrize(("wrong", "headline"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_is_told_before_anything_is_trained(
    wrong: dict[str, Any], headline: str, tmp_path: Path
) -> None:
    model = wrong.get("model", small())
    before = {} if "model" in wrong else values(model)
    calls: list[int] = []
    options = {name: value for name, value in wrong.items() if name != "model"}
    with pytest.raises(pk.PrunekitError) as caught:
        made(model, **options, folder=tmp_path / "run", progress=lambda done, total: calls.append(done))
    assert caught.value.headline.startswith(headline)
    assert calls == []
    assert not (tmp_path / "run").exists()
    assert "model" in wrong or same(values(model), before)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(pk.CheckpointError, match="The folder holds something else") as caught:
        made(folder=tmp_path)
    assert "'notes.txt'" in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"model": small(1)}, "model was "),
        ({"seed": 1}, "seed was 0, and is 1"),
        ({"steps": 1}, "steps was 2, and is 1"),
        ({"target": {"macs": 0.4}}, "target was {'macs': 0.5}, and is {'macs': 0.4}"),
        ({"prune": {"round_to": 2}}, "prune was {}, and is {'round_to': 2}"),
    ],
)
def test_another_shrinking_does_not_go_on_in_a_folder(other: dict[str, Any], word: str, tmp_path: Path) -> None:
    made(folder=tmp_path / "run")
    stored = (tmp_path / "run" / "protocol.json").read_bytes()
    with pytest.raises(pk.CheckpointError, match="The folder holds another shrinking") as caught:
        made(**other, folder=tmp_path / "run")
    assert word in caught.value.why
    assert (tmp_path / "run" / "protocol.json").read_bytes() == stored


def test_a_damaged_protocol_is_told(tmp_path: Path) -> None:
    made(folder=tmp_path / "run")
    path = tmp_path / "run" / "protocol.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(pk.CheckpointError, match="The protocol can't be read"):
        made(folder=tmp_path / "run")


def broken_after(calls: int) -> Callable[[Any, Any], Tensor]:
    """A loss that isn't a number from a call on where gradients count."""
    seen = 0

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        nonlocal seen
        seen += outputs.requires_grad
        return outputs.square().mean() * (float("nan") if seen > calls else 1.0)

    return loss


def test_a_loss_that_is_no_number_ends_the_course_with_the_best_state(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "lr": 1e-2, "weights": {"labels": 1}, "evaluate_every": 1}
    result = made(
        steps=3, distill=options | {"loss_fn": broken_after(3)}, target={"macs": 0.4}, folder=tmp_path / "run"
    )
    assert [step.number for step in result.history] == [1, 2]
    assert result.stopped.startswith("in the training after cut 2: step 2: the loss 'labels' is nan on batch ")
    training = result.history[-1].training
    assert training is not None
    assert (training.steps, training.diverged) == (1, True)
    assert f"stopped: {result.stopped}" in str(result)
    assert all(bool(tensor.isfinite().all()) for tensor in result.model.state_dict().values())
    again = made(steps=3, distill=options | {"loss_fn": broken_after(0)}, target={"macs": 0.4}, folder=tmp_path / "run")
    assert again.stopped == result.stopped
    assert same(values(again.model), values(result.model))


def test_a_model_in_train_mode_is_noted_and_stays_in_it() -> None:
    model = small().train()
    result = made(model)
    assert model.training
    assert result.notes == ("the teacher was in train mode; it ran in eval mode",)


def test_a_regularizer_is_made_for_each_training_but_the_last() -> None:
    sizes: list[int] = []

    def make(groups: Any) -> GroupNormRegularizer:
        sizes.append(sum(group.size() for group in groups()))
        return GroupNormRegularizer(groups)

    made(steps=3, distill={"steps": 3, "regularizer": make})
    assert len(sizes) == 2
    assert sizes[1] < sizes[0] < 6

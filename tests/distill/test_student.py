"""How a student is trained: with gradient checkpointing, and with regularizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.distill import distill
from prunekit_plugins.regularizers import GroupNormRegularizer, GrowingRegularizer
from tests.distill.models import StoppedError, batches, inputs, pair, same, stop_after, values

WITHOUT_NORMS: dict[str, Any] = {"freeze_batchnorm": True, "lr": 1e-2, "steps": 5}


@pytest.mark.parametrize("chosen", [["blocks"], ["blocks.1"], [nn.Sequential], []])
def test_computing_again_changes_nothing(chosen: list[Any]) -> None:
    """Dropout and hidden states among what is computed again."""
    found = []
    for wanted in (chosen, False):
        student, teacher, plan = pair()
        result = distill(
            student,
            teacher,
            batches(),
            plan=plan,
            weights={"logits": 1, "hidden": 1},
            gradient_checkpointing=wanted,
            **WITHOUT_NORMS,
        )
        found.append((values(student), result.losses))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = []
    for wanted in (False, ["blocks"]):
        student, teacher, _ = pair()
        count = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        def wrapped(outputs: Any, batch: Any) -> torch.Tensor:
            return outputs.square().mean()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            distill(
                student, teacher, batches(1), weights={"labels": 1}, loss_fn=wrapped, steps=1,
                freeze_batchnorm=True, gradient_checkpointing=wanted,
            )  # fmt: skip
        kept.append(count)
    assert kept[1] < kept[0]


def test_forwards_are_put_back() -> None:
    student, teacher, _ = pair()
    own = student.blocks[0].forward
    student.blocks[0].forward = own
    distill(student, teacher, batches(), gradient_checkpointing=["blocks.0", "blocks.1"], **WITHOUT_NORMS)
    assert vars(student.blocks[0])["forward"] is own
    assert "forward" not in vars(student.blocks[1])


@pytest.mark.parametrize(
    ("wrong", "headline"),
    [
        ({"gradient_checkpointing": ["blocks"]}, "A batch norm that is computed again follows each batch twice."),
        (
            {"gradient_checkpointing": True, "freeze_batchnorm": True},
            "The model has no gradient checkpointing of its own.",
        ),
        ({"gradient_checkpointing": ["block"], "freeze_batchnorm": True}, "The model has no module named 'block'."),
        ({"gradient_checkpointing": "blocks"}, "gradient_checkpointing is True, False, or a list of modules."),
        ({"regularizer": "group"}, "No regularizer is registered as 'group'."),
        ({"regularizer": {"name": "group_norm", "regg": 1}}, "The regularizer 'group_norm' has no argument 'regg'."),
        ({"regularizer": 3}, "regularizer is a name, a table with one, a function of groups, or a regularizer."),
        ({"regularizer": {}}, "regularizer is a name, a table with one, a function of groups, or a regularizer."),
        ({"regularizer": lambda groups: 3}, "regularizer is a name, a table with one"),
        ({"regularizer": "group_norm", "train": "lora"}, "A regularizer shrinks weights, and adapters are trained."),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_changed(wrong: dict[str, Any], headline: str) -> None:
    student, teacher, _ = pair()
    before = values(student)
    with pytest.raises(pk.ArgumentError) as caught:
        distill(student, teacher, batches(), steps=2, **wrong)
    assert caught.value.headline.startswith(headline)
    assert same(values(student), before)


def test_a_regularizer_adds_to_the_clipped_gradients_of_every_step() -> None:
    student, teacher, _ = pair()
    twin, _, _ = pair()
    strength = 0.5
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (student, twin)]
    options: dict[str, Any] = {"steps": 1, "schedule": "constant", "warm_up": 0}
    distill(student, teacher, batches(), optimizer=optimizers[0], regularizer=_every(strength), **options)
    start, _, _ = pair()
    distill(twin, teacher, batches(), optimizer=optimizers[1], **options)
    name = "blocks.1.up.weight"
    expected = twin.get_parameter(name) - 0.1 * strength * start.get_parameter(name)
    torch.testing.assert_close(student.get_parameter(name), expected)


def _every(strength: float) -> Any:
    """A function that makes a regularizer: plain decay of one weight."""

    def make(groups: Any) -> Any:
        return Decay(groups, strength)

    return make


class Decay:
    """Adds a part of the weight of one layer to its gradient."""

    def __init__(self, groups: Any, strength: float) -> None:
        views = [view for group in groups() for view in group.views()]
        self.weight = next(v.tensor for v in views if f"{v.path}.{v.name}" == "blocks.1.up.weight")
        self.strength = strength

    def regularize(self) -> None:
        self.weight.grad += self.strength * self.weight.detach()


def test_regularizers_are_named_stated_made_or_given() -> None:
    found = []
    for number in range(4):
        student, teacher, _ = pair()
        graph = pk.Graph.of(student, inputs(2))
        given = [
            {"name": "group_norm", "reg": 1e-2},
            lambda groups: GroupNormRegularizer(groups, reg=1e-2),
            GroupNormRegularizer(graph.get_all_groups, reg=1e-2),
            "group_norm",
        ][number]
        distill(student, teacher, batches(), steps=3, lr=1e-2, regularizer=given)
        found.append(values(student))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert not same(found[0], found[3])


def test_a_growing_regularizer_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    def run(progress: Any = None, checkpoint: Path | None = None) -> tuple[Any, GrowingRegularizer]:
        student, teacher, _ = pair()
        made = GrowingRegularizer(pk.Graph.of(student, inputs(2)).get_all_groups, reg=1e-2, delta_reg=1e-1)
        distill(
            student, teacher, batches(), steps=20, lr=1e-2, regularizer=made, checkpoint=checkpoint, save_every=3,
            progress=progress,
        )  # fmt: skip
        return values(student), made

    whole, regularizer = run()
    path = tmp_path / "run.safetensors"
    with pytest.raises(StoppedError):
        run(stop_after(8), path)
    again, resumed = run(None, path)
    assert same(whole, again)
    assert resumed.state_dict() == regularizer.state_dict()
    assert max(max(strengths) for strengths in resumed.state_dict().values()) == pytest.approx(
        1e-2 + 10 * 1e-1, rel=0.3
    )

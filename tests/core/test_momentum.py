"""Submodules that follow others by a moving average are cut alike: found by structure and names, or declared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


class Byol(nn.Module):
    """Only the student is run."""

    def __init__(self, make: Callable[[], nn.Module] = network) -> None:
        super().__init__()
        self.student = make()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.student(x)
        return y


class Both(Byol):
    """Student and teacher are run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target: torch.Tensor = self.teacher(x)
        difference: torch.Tensor = self.student(x) - target
        return difference


def average(original: nn.Module, follower: nn.Module, keep: float = 0.9) -> None:
    with torch.no_grad():
        for own, other in zip(follower.parameters(), original.parameters(), strict=True):
            own.mul_(keep).add_((1 - keep) * other)


def test_a_copy_that_is_never_run_loses_the_same_units() -> None:
    torch.manual_seed(0)
    model = Byol()
    original = copy.deepcopy(model)
    result = pk.prune(model, X)
    assert result.report.pruned == {"student.0": (32, 16)}
    assert result.report.untouched == ()
    note = "teacher is cut as student is: a momentum copy (never run, and of the same structure)"
    assert note in result.report.notes
    kept = list(result.plan.cuts[0].kept)
    first, norm, _, last = model.teacher
    assert torch.equal(first.weight, original.teacher[0].weight[kept])
    assert torch.equal(norm.running_var, original.teacher[1].running_var[kept])
    assert torch.equal(last.weight, original.teacher[3].weight[:, kept])
    assert (first.out_features, norm.num_features, last.in_features) == (16, 16, 16)
    assert pk.check_exact(original, model, result.plan, X).exact
    torch.testing.assert_close(model.eval().teacher(X), model.student(X))  # they were copies, and still are
    average(model.student, model.teacher)


def test_scores_are_those_of_the_original_alone() -> None:
    torch.manual_seed(0)
    model = Byol()
    with torch.no_grad():
        model.teacher[0].weight.mul_(torch.randn(32, 1) * 100)
    alone = nn.Sequential(*copy.deepcopy(model.student))
    plan, expected = (pk.prune(each, X).plan.cuts[0].kept for each in (model, alone))
    assert plan == expected


def test_plans_and_checkpoints_know_the_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Byol()
    fresh, other = copy.deepcopy(model), copy.deepcopy(model)
    plan = pk.prune(model, X).plan
    pk.Plan.from_json(plan.to_json()).apply(fresh)
    assert {name: t.shape for name, t in fresh.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }
    pk.save(model, tmp_path / "model.safetensors", plan=plan)
    pk.load(other, tmp_path / "model.safetensors")
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


class Attending(nn.Module):
    """Its head dim is an attribute of its own, and its default scale follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, 8
        self.q, self.k, self.v = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(8, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x)[None].view(1, -1, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        y: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(len(x), self.heads * self.dim))
        return y


def test_attributes_and_rescaled_rows_follow() -> None:
    torch.manual_seed(0)
    model = Byol(Attending)
    result = pk.prune(model, X)
    assert (model.student.dim, model.teacher.dim) == (4, 4)
    assert {"student.q.weight", "teacher.q.weight"} <= {rescale.parameter for rescale in result.plan.rescales}
    torch.testing.assert_close(model.teacher(X), model.student(X))


class Critics(nn.Module):
    """Two critics of the same structure, each with a target: names tell which belongs to which."""

    def __init__(self) -> None:
        super().__init__()
        self.qf1, self.qf2 = network(), network()
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.qf1(x), self.qf2(x)


def test_names_tell_several_originals_apart() -> None:
    torch.manual_seed(0)
    model = Critics().eval()
    pk.prune(model, X)
    torch.testing.assert_close(model.qf1_target(X), model.qf1(X))
    torch.testing.assert_close(model.qf2_target(X), model.qf2(X))


class EarlyExit(nn.Module):
    """Of three blocks of the same structure, the last one is never run: it is nobody's copy."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(network() for _ in range(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [block(x) for block in self.blocks[:2]]


class SpareLayer(nn.Module):
    """A single layer that is never run isn't a copy of another one by its shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.out, self.spare = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.used(x).relu())
        return y


@pytest.mark.parametrize("model", [EarlyExit, SpareLayer])
def test_what_is_merely_unused_stays_whole(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    report = pk.prune(model().eval(), X).report
    assert report.untouched
    assert not any("momentum" in note for note in report.notes)


def test_copies_that_are_run_as_well_are_declared() -> None:
    torch.manual_seed(0)
    model = Both().eval()
    original = copy.deepcopy(model)
    copies = {"teacher": "student"}
    result = pk.prune(model, X, momentum_copies=copies)
    assert result.report.pruned == {"student.0": (32, 16)}
    kept = list(result.plan.cuts[0].kept)
    for name in ("student", "teacher"):
        assert torch.equal(getattr(model, name)[0].weight, getattr(original, name)[0].weight[kept])
    assert "teacher is cut as student is: a momentum copy (declared)" in result.report.notes
    assert pk.check_exact(original, model, result.plan, X, momentum_copies=copies).exact
    average(model.student, model.teacher)


@pytest.mark.parametrize(
    ("copies", "text"),
    [
        ({"teachr": "student"}, "no such submodule"),
        ({"teacher": "student.0"}, "needs the parameters and buffers of its original"),
        ({"student.0": "student"}, "needs the parameters and buffers of its original"),
        ({"student": "teacher"}, "was never run"),
        ({"student": "teacher", "teacher": "student"}, "an original as well"),
        ("teacher", "momentum_copies is a mapping"),
    ],
)
def test_what_is_declared_is_checked(copies: dict[str, str], text: str) -> None:
    model = Byol()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pk.ArgumentError, match=text):
        pk.prune(model, X, momentum_copies=copies)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_stepwise_pruning_keeps_them_alike() -> None:
    torch.manual_seed(0)
    model = Byol().eval()
    pruner = pk.BasePruner(model, X, pruning_ratio=0.75, iterative_steps=3)
    for width in (24, 16, 8):
        pruner.step()
        assert model.student[0].out_features == model.teacher[0].out_features == width
        torch.testing.assert_close(model.teacher(X), model.student(X))
        average(model.student, model.teacher)


class Alternatives(nn.Module):
    """Two trunks with a head each; nothing in the names says that one follows the other."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Linear(8, 16), nn.Linear(8, 16)
        self.a, self.b = (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(self.near(x)), self.far(x).sum(1)

    def other(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.far(x))
        return y


def test_what_another_program_may_feed_otherwise_stays_whole() -> None:
    torch.manual_seed(0)
    model = Alternatives().eval()
    result = pk.prune(model, X)
    assert result.report.pruned["a.0"] == (32, 16)
    assert model.b[0].weight.shape == (32, 16)
    line = "b was never run and stays whole, though a has the same structure; if it follows that one, declare it: "
    assert line + "momentum_copies={'b': 'a'}" in result.report.notes
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # else it would read units of another group
        model.other(X)


def test_without_a_name_what_lies_inside_is_cut() -> None:
    torch.manual_seed(0)
    model = Alternatives().eval()
    model.b.load_state_dict(model.a.state_dict())
    example = torch.randn(4, 16)
    pk.prune(model, example, forward_fn=lambda model, x: model.a(x))
    assert model.a[0].out_features == model.b[0].out_features == 16
    torch.testing.assert_close(model.b(example), model.a(example))


class SharedTrunk(nn.Module):
    """A copy by name that reads what its original reads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.ema_head = nn.Linear(8, 16), network(), network()
        self.head[0], self.ema_head[0] = nn.Linear(16, 32), nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.trunk(x))
        return y


def test_a_copy_by_name_is_cut_with_what_both_read() -> None:
    torch.manual_seed(0)
    model = SharedTrunk().eval()
    model.ema_head.load_state_dict(model.head.state_dict())
    assert pk.prune(model, X).report.pruned == {"trunk": (16, 8), "head.0": (32, 16)}
    torch.testing.assert_close(model.ema_head(model.trunk(X)), model(X))


def test_a_copy_may_share_weights() -> None:
    torch.manual_seed(0)
    model = Byol().eval()
    model.teacher[0].weight = model.student[0].weight
    pk.prune(model, X)
    assert model.teacher[0].weight is model.student[0].weight
    torch.testing.assert_close(model.teacher(X), model.student(X))


class RunInPart(Byol):
    """The first layer of the teacher is run, too, and has units of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.student(x) + self.teacher[0](x).sum(1, keepdim=True)
        return y


def test_parts_of_what_ran_in_part_are_no_copies() -> None:
    torch.manual_seed(0)
    model = RunInPart().eval()
    report = pk.prune(model, X).report
    assert set(report.pruned) == {"student.0", "teacher.0"}
    assert "teacher.3.weight" in report.untouched
    assert not any("momentum copy" in note for note in report.notes)


class Cached(nn.Module):
    """Keys come from a cache: the layer that would make them isn't run, and is no copy of the one for queries."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.stem = nn.Linear(8, 16), nn.Linear(8, 16)
        self.q_proj, self.k_proj, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.out(self.q_proj(self.stem(x))), self.source(x).sum(1)


def test_a_single_layer_needs_a_plain_word() -> None:
    torch.manual_seed(0)
    model = Cached().eval()
    assert "k_proj.weight" in pk.prune(model, X).report.untouched
    assert model.k_proj.weight.shape == (16, 16)


def test_other_numbers_make_another_structure() -> None:
    torch.manual_seed(0)
    model = Byol(Attending)
    model.teacher.heads, model.teacher.dim = 8, 4
    report = pk.prune(model, X).report
    assert "teacher.q.weight" in report.untouched
    assert model.teacher.q.weight.shape == (32, 8)


class Partial(nn.Module):
    """The target has no predictor, as in BYOL, and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        wide = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
        self.online = nn.ModuleDict({"body": nn.Linear(8, 32), "projector": wide, "predictor": nn.Linear(32, 4)})
        self.target = nn.ModuleDict({name: copy.deepcopy(self.online[name]) for name in ("body", "projector")})
        self.target.register_buffer("steps", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.online["predictor"](self.online["projector"](self.online["body"](x).relu()))
        return y


def test_a_copy_may_have_fewer_parts() -> None:
    torch.manual_seed(0)
    model = Partial().eval()
    assert len(pk.prune(model, X).report.pruned) == 3
    online, target = (net["projector"](net["body"](X).relu()) for net in (model.online, model.target))
    assert online.shape == (4, 16)
    torch.testing.assert_close(target, online)

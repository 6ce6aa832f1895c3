"""Programs that ask what they run on: while they are recorded they get the answers that the model gives."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import prunekit as pk

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


class Attends(nn.Module):
    """Attends only where its layer is an ``nn.MultiheadAttention`` (as GPSConv of torch_geometric does)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(12, 32), nn.Linear(32, 4)
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inp(x)
        if isinstance(self.attn, nn.MultiheadAttention):
            assert self.attn.embed_dim == self.attn.kdim == h.shape[-1]
            h = h + self.attn(h, h, h, need_weights=False)[0]
        return self.out(h)  # type: ignore[no-any-return]


def test_the_stand_in_for_attention_is_attention() -> None:
    torch.manual_seed(0)
    model = Attends().eval()
    original = copy.deepcopy(model)
    result = pk.prune(model, X)
    assert not result.report.untouched
    assert isinstance(model.attn, nn.MultiheadAttention)
    assert model.inp.out_features == 16
    assert model.attn.head_dim == model.attn.in_proj_weight.shape[0] // 3 // model.attn.num_heads
    assert pk.check_exact(original, model, result.plan, X)


class Exactly(Attends):
    """Attends only where its layer is of that very class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inp(x)
        if type(self.attn) is nn.MultiheadAttention:
            h = h + self.attn(h, h, h, need_weights=False)[0]
        return self.out(h)  # type: ignore[no-any-return]


def test_a_program_that_asks_for_the_very_class_keeps_the_layer() -> None:
    model = Exactly().eval()
    before = model(X)
    graph = pk.DependencyGraph().build_dependency(model, X)
    assert not graph.report().untouched
    assert "the program asks for the class of attn" in graph.report().notes[-1]
    with pytest.raises(pk.NothingToPruneError):
        pk.prune(model, X)
    torch.testing.assert_close(model(X), before)


class Pooled(nn.Module):
    """A head for train mode only, with a norm that has one value per channel for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)
        self.aux, self.norm, self.last = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x).relu().mean((2, 3))
        return (self.head(x), self.last(self.norm(self.aux(x)))) if self.training else self.head(x)


def test_train_mode_is_recorded_with_one_example_though_norms_refuse_it() -> None:
    torch.manual_seed(0)
    model = Pooled()
    original = copy.deepcopy(model)
    result = pk.prune(model, torch.randn(1, 3, 8, 8))
    assert result.report.pruned == {"stem": (16, 8), "aux": (8, 4)}
    assert not result.report.untouched
    assert [len(out) for out in model.train()(torch.randn(2, 3, 8, 8))] == [2, 2]
    assert "recorded without the check of norms" in result.report.notes[0]
    assert pk.check_exact(original, model, result.plan, torch.randn(2, 3, 8, 8), training=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.SyncBatchNorm(8), nn.InstanceNorm1d(8, affine=True)])
def test_a_batch_of_one_as_set(norm: nn.Module) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 8), norm, nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = self.norm(x.unsqueeze(-1)).squeeze(-1) if isinstance(self.norm, nn.InstanceNorm1d) else self.norm(x)
            return self.b(x)  # type: ignore[no-any-return]

    model = Small().train()
    graph = pk.DependencyGraph().build_dependency(model, torch.randn(1, 4), modes=(None,))
    assert set(graph.analysis.groups) == {"a"}


@pytest.mark.slow
def test_inception_is_whole_in_train_mode_after_one_image() -> None:
    model = models.inception_v3(weights=None, init_weights=False, aux_logits=True, num_classes=5)
    pk.prune(model, torch.randn(1, 3, 299, 299))
    out, aux = model.train()(torch.randn(2, 3, 299, 299))
    assert out.shape == aux.shape == (2, 5)


class Asks(nn.Module):
    """Train mode can't be recorded: it needs targets; a head runs there only."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.stem, self.middle, self.head = nn.Linear(4, 16), nn.Linear(16, 20), nn.Linear(20, 3)
        self.aux = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and self.first and targets is None:
            raise ValueError("train mode needs targets")
        x = self.stem(x).relu()
        aux = self.aux(x) if self.training else None
        if self.training and targets is None:
            raise ValueError("train mode needs targets")
        x = self.head(self.middle(x).relu())
        return x if aux is None else (x - targets).square().mean() + aux.sum()


@pytest.mark.parametrize("first", [False, True], ids=["after it", "before it"])
def test_what_only_a_mode_that_cannot_be_recorded_uses_keeps_the_width_of_its_inputs(first: bool) -> None:
    model = Asks(first)
    report = pk.prune(model, torch.randn(2, 4)).report
    assert model.middle.out_features == 10
    assert any("train mode was not recorded: ValueError: train mode needs targets" in note for note in report.notes)
    assert model.train()(torch.randn(2, 4), torch.zeros(2, 3)).isfinite()  # it runs
    if first:
        assert report.pinned["stem.weight[0]"] == "aux.weight may be used with it in a mode that wasn't recorded"
        assert "aux.weight" in report.untouched
    else:
        assert report.pruned["stem"] == (16, 8)  # what ran before it raised was seen


def test_parameters_of_modules_that_ran_without_them_are_a_warning() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.other = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor, other: bool = False) -> torch.Tensor:
            x = self.a(x).relu()
            return self.other(x) if other else self.b(x)  # type: ignore[no-any-return]

    report = pk.prune(Branches(), torch.randn(2, 4)).report
    assert report.notes[-1].startswith("WARNING: modules ran without these parameters of theirs: other.weight")


class Forks(nn.Module):
    """Takes the way of ``right`` if the question is answered as the model answers it."""

    def __init__(self, ask: Callable[[Any, torch.Tensor], bool]) -> None:
        super().__init__()
        self.ask, self.answers = ask, list[bool]()
        self.a, self.right, self.wrong = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.tied, self.table = nn.Linear(4, 16), {"a": self.a}
        self.tied.weight = self.a.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.call = lambda x: self.a(x)
        self.known = weakref.ref(self.a)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        return (self.right if self.ask(self, x) else self.wrong)(hidden)  # type: ignore[no-any-return]


QUESTIONS: dict[str, Callable[[Any, torch.Tensor], bool]] = {
    "flag in vars": lambda m, x: vars(m)["training"] is m.training and "training" in m.__dict__,
    "flag by get": lambda m, x: m.a.__dict__.get("training") is m.training,
    "no forward in vars": lambda m, x: "forward" not in vars(m) and "forward" not in list(m.a.__dict__),
    "keys of vars": lambda m, x: {"training", "_modules"} <= {key for key, _ in vars(m.a).items()},
    "tied": lambda m, x: m.a.weight is m.tied.weight and m.a is m.table["a"],
    "frozen": lambda m, x: m.a.weight.requires_grad and not m.frozen.weight.requires_grad,
    "trainable count": lambda m, x: sum(p.requires_grad for p in m.parameters()) == 7,
    "classes": lambda m, x: type(m.a) is nn.Linear and m.__class__.__name__ == "Forks",
    "parameters": lambda m, x: isinstance(m.a.weight, nn.Parameter) and m.a.in_features == m.a.weight.shape[1],
    "method": lambda m, x: inspect.ismethod(m.a.forward) and m.a.forward.__self__ is m.a,
    "signature": lambda m, x: list(inspect.signature(m.a.forward).parameters) == ["input"],
    "source": lambda m, x: "F.linear" in inspect.getsource(m.a.forward),
    "names": lambda m, x: [n for n, _ in m.named_children()] == ["a", "right", "wrong", "tied", "frozen"],
    "state dict": lambda m, x: list(m.state_dict())[:2] == ["a.weight", "a.bias"],
    "has flag": lambda m, x: hasattr(m, "training") and not hasattr(m, "no_such"),
    "copy": lambda m, x: vars(copy.copy(m.a)).keys() == vars(m.a).keys(),
    "deep copy": lambda m, x: type(vars(copy.deepcopy(m.a))) is dict,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_a_program_asks_is_answered_as_by_the_model(name: str) -> None:
    model, x = Forks(QUESTIONS[name]), torch.randn(2, 4)
    assert QUESTIONS[name](model, x)  # the model's own answer
    report = pk.prune(model, x, verify="always").report
    assert "wrong.weight" in report.untouched
    assert "right.weight" not in report.untouched


def test_a_copy_of_a_module_runs_with_its_own_parameters() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)
            self.scale = nn.Parameter(torch.rand(16, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled = copy.copy(self.a)
            scaled._parameters = {"weight": self.a.weight * self.scale, "bias": self.a.bias}
            return self.b(scaled(x).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Copies(), torch.randn(2, 4)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert result.report.pruned == {"scale": (16, 8)}  # the rows of a go along
    assert not result.report.untouched
    assert pk.check_exact(original, model, result.plan, x)


REGISTRY: dict[str, nn.Module] = {}
WAYS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "closure": lambda m, x: m.call(x),
    "weak reference": lambda m, x: m.known()(x),
    "registry": lambda m, x: REGISTRY["a"](x),
    "function": lambda m, x: nn.functional.linear(x, REGISTRY["a"].weight, REGISTRY["a"].bias),
    "both": lambda m, x: m.call(x) + m.a(x),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("real", [False, True])
def test_modules_that_are_reached_past_the_model_are_its_own(way: str, real: bool) -> None:
    class Around(Forks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if real and x.sum().item() > 1e9:
                raise ValueError("out of bounds")
            return self.right(WAYS[way](self, x).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Around(lambda m, x: True).eval(), torch.randn(2, 4)
    REGISTRY["a"] = model.a
    model.tied.weight = nn.Parameter(torch.rand(16, 4))
    before, weights = model(x), model.a.weight.detach().clone()
    result = pk.prune(model, x)
    assert list(result.report.pruned.values()) == [(16, 8)]
    (kept,) = map(list, result.plan.kept.values())
    hidden = nn.functional.linear(x, weights[kept], model.a.bias) * (2 if way == "both" else 1)
    torch.testing.assert_close(model(x), model.right(hidden.relu()))
    assert model(x).shape == before.shape

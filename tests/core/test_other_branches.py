"""Programs that ask what they run on: while they are recorded they get the answers that the model gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import prunekit_core as pk

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

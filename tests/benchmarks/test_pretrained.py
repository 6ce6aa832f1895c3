"""The benchmark of a pretrained classifier, on a small one with two pictures: rows, tables, and how a run goes on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import attrs
import pretrained
import pretrained_rival
import pytest
import torch
from torch import nn

Image = pytest.importorskip("PIL.Image", reason="photographs are read with it")


def row(way: str, **values: float) -> pretrained.Row:
    base = {field.name: 0.0 for field in attrs.fields(pretrained.Row)} | {"budget": 0.75, "samples": 96}
    return pretrained.Row(**(base | {"way": way} | values))


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], argparse.Namespace]:
    torch.manual_seed(0)
    for name in ("a.png", "b.png"):
        values = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
        Image.frombytes("RGB", (64, 48), values.numpy().tobytes()).save(tmp_path / name)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    for value in model.parameters():
        value.data.mul_(4)
    monkeypatch.setattr(pretrained, "SETS", (("a.png",), ("b.png",)))
    monkeypatch.setattr(pretrained, "network", lambda folder: model)
    common = f"--folder {tmp_path} --crops 8 --unseen 16 --size 12 --ways".split()
    return lambda more: pretrained.parse([*common, pretrained.DEFAULT, *more.split()])


def test_each_set_calibrates_once_and_what_is_left_is_within_the_budget(
    options: Callable[[str], argparse.Namespace],
) -> None:
    rows = list(pretrained.measured(options("--budgets 0.6 --curve"), []))
    assert [(found.samples, found.budget, found.split) for found in rows] == [(8, 0.6, 0), (8, 0.6, 1)]
    assert all(0.3 < found.macs <= 0.6 for found in rows)
    assert all(found.divergence > 0 and found.known_divergence > 0 for found in rows)


def test_a_run_takes_up_where_it_stopped(options: Callable[[str], argparse.Namespace]) -> None:
    asked = options("--budgets 0.6 --curve 4 --splits 1")
    rows = list(pretrained.measured(asked, []))
    assert [found.samples for found in rows] == [8, 4]
    again = list(pretrained.measured(asked, rows[:1]))
    assert [attrs.evolve(found, seconds=0) for found in again] == [attrs.evolve(rows[1], seconds=0)]


def test_a_classifier_compared_with_itself_agrees_and_one_that_says_the_opposite_does_not() -> None:
    said = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).log_softmax(1)
    assert pretrained.compare(said, said) == (1.0, 0.0)
    agreement, divergence = pretrained.compare(said, said.flip(1))
    # two classes with logits apart by d, exchanged: (p - q) * d, p - q = tanh(d / 2)
    expected = (2 * torch.tensor(2.0 / 2).tanh() + 1 * torch.tensor(1.0 / 2).tanh()) / 2
    assert agreement == 0.0
    assert divergence == pytest.approx(float(expected))


def test_no_constant_answer_is_closer_than_the_mean_distribution() -> None:
    torch.manual_seed(0)
    said = torch.randn(20, 5).log_softmax(1)
    _, least = pretrained.compare(said, pretrained.constant(said))
    others = [torch.randn(5).log_softmax(0).expand_as(said), said[:1].expand_as(said)]
    assert 0 < least < min(pretrained.compare(said, other)[1] for other in others)


def test_tables_order_methods_by_agreement_and_show_both_draws() -> None:
    rows = [
        row("worse", split=0, agreement=0.1),
        row(pretrained.DEFAULT, split=1, agreement=0.5),
        row(pretrained.DEFAULT, split=0, agreement=0.4),
        row(pretrained.DEFAULT, samples=512, agreement=0.6),
    ]
    lines = pretrained.table(rows, 96).splitlines()
    assert [line.split(" | ")[:2] for line in lines if "%" in line and line.startswith("| ")] == [
        ["| prunekit, default", "40% / 50%"],
        ["| worse", "10%"],
        ["| 96", "40% / 50%"],
        ["| 512", "60%"],
    ]


def test_statistics_anew_are_means_over_batches() -> None:
    torch.manual_seed(0)
    model, crops = nn.Sequential(nn.BatchNorm2d(3)).eval(), torch.randn(64, 3, 4, 4)
    pretrained_rival.reestimate(model, crops)
    batches = torch.stack([part.transpose(0, 1).flatten(1) for part in crops.split(32)])
    torch.testing.assert_close(model[0].running_mean, batches.mean((0, 2)))
    torch.testing.assert_close(model[0].running_var, batches.var(2).mean(0))
    assert not model[0].training

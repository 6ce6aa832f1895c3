"""What a report says on top: one sentence, figures that a person reads, a warning where the weights were random."""

from __future__ import annotations

import datetime

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.reports import inspection_data, report_data, to_html, to_markdown
from prunekit_plugins.reports.summary import LATENCY, RANDOM, readable, sentence
from tests.models import Residual


class Stack(nn.Module):
    """Four residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x)


@pytest.fixture(scope="module")
def result() -> pk.PruneResult:
    torch.manual_seed(0)
    return pk.prune(Residual().eval(), torch.randn(1, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (11_181_642, "", "11.2 M"),
        (45_338_568, "bytes", "45.3 MB"),
        (7_240_000_000, "", "7.24 bn"),
        (14_480_000_000, "bytes", "14.5 GB"),
        (512, "bytes", "512 B"),
        (13.314, "ms", "13.3 ms"),
        (0.98, "", "0.98"),
    ],
)
def test_numbers_that_a_person_reads(value: float, unit: str, text: str) -> None:
    assert readable(value, unit) == text


def test_the_sentence_counts_what_went(result: pk.PruneResult) -> None:
    preview, lost = result.preview, f"{len(result.report.pruned)} of {len(result.graph.groups())}"
    macs, params = preview.costs["macs"], (preview.params_before, preview.params_after)
    assert sentence(report_data(result)) == (
        f"The smaller model keeps {macs[1] / macs[0]:.1%} of its multiply-accumulates and "
        f"{params[1] / params[0]:.1%} of its parameters: {lost} groups of units lost some."
    )


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (5.0, ", and it runs 2.00 times as fast on this machine (10 and 5 ms)."),
        (9.9, ", and it isn't faster on this machine (10 and 9.9 ms)."),
    ],
)
def test_the_sentence_says_whether_it_is_faster(result: pk.PruneResult, after: float, words: str) -> None:
    assert sentence(report_data(result, measured={LATENCY: (10, after)})).endswith(f"lost some{words}")


def test_the_sentence_counts_branches() -> None:
    found = pk.prune(Stack(), torch.randn(1, 8), branch_ratio=0.5)
    assert sentence(report_data(found)).endswith(": 2 of 4 branches went whole.")


def test_an_inspected_model() -> None:
    graph = pk.DependencyGraph().build_dependency(Residual().eval(), torch.randn(1, 3, 8, 8))
    groups, branches = len(graph.groups()), len(graph.branches())
    assert sentence(inspection_data(graph)) == f"{groups} groups of units and {branches} branches were found."


def test_measured_figures_and_the_place_for_them(result: pk.PruneResult) -> None:
    empty = to_html(report_data(result, measured={LATENCY: (3, 2)}))
    assert "not measured" in empty
    page = to_html(report_data(result, measured={"accuracy (%)": (91.2, 90.8)}))
    assert "not measured" not in page
    assert '<div class="name">accuracy (%)</div><div class="left">90.8</div>' in page
    assert "| accuracy (%) | 91.2 | 90.8 |" in to_markdown(report_data(result, measured={"accuracy (%)": (91.2, 90.8)}))


def test_the_day_and_the_proof_are_told(result: pk.PruneResult) -> None:
    page = to_html(report_data(result))
    assert f"Pruned with prunekit, {datetime.date.today().isoformat()}. Verified: relative error " in page


def test_random_weights_are_told_in_red(result: pk.PruneResult) -> None:
    assert f'<p class="warning">{RANDOM}</p>' in to_html(report_data(result, random_weights=True))
    assert 'class="warning"' not in to_html(report_data(result))
    assert RANDOM in to_markdown(report_data(result, random_weights=True))


def test_measured_figures_are_two_numbers(result: pk.PruneResult) -> None:
    with pytest.raises(pk.ArgumentError, match="two numbers") as error:
        report_data(result, measured={"accuracy": 0.9})  # type: ignore[dict-item]
    assert "where: measured['accuracy']" in str(error.value)

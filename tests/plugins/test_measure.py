"""Measuring: what is timed, in which order and mode; memory and counts against numbers known beforehand."""

from __future__ import annotations

import contextlib
import gc
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins import measure
from prunekit_plugins.budgets import macs, memory
from prunekit_plugins.measure import latency
from tests.models import Encoder, Residual

X = torch.randn(2, 3, 8, 8)


class Counter(nn.Module):
    """Writes down when it is called and in which mode."""

    def __init__(self, log: list[tuple[str, bool, bool]], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name
        self.inner = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append((self.name, self.training, torch.is_inference_mode_enabled()))
        return self.inner(x)


def test_models_run_in_turns_in_eval_and_inference_mode() -> None:
    log: list[tuple[str, bool, bool]] = []
    models = [Counter(log, "a"), Counter(log, "b").eval()]
    models[0].inner.eval()
    done: list[int] = []
    timings = measure.side_by_side(models, X, rounds=3, warm_up=1, after_round=lambda: done.append(1))
    assert [name for name, _, _ in log] == list("abbaabba")
    assert {(training, inference) for _, training, inference in log} == {(False, True)}
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert len(done) == 4
    assert (models[0].training, models[0].inner.training, models[1].training) == (True, False, False)


def test_modes_are_restored_when_a_forward_is_interrupted() -> None:
    class Stops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(2, 2), Stops())
    for call in (measure.side_by_side, measure.time_layers):
        with pytest.raises(KeyboardInterrupt):
            call([model], torch.randn(1, 2))
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(KeyboardInterrupt):
        measure.peak_memory(model, torch.randn(1, 2))
    assert model.training


def test_the_median_and_the_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.accumulate([5.0, 0.0, 1.0, 0.0, 9.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0])
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (timing,) = measure.timed([lambda: None], rounds=5, warm_up=1)
    assert timing.seconds == (1.0, 9.0, 2.0, 3.0, 4.0)
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert measure.Timing((7.0,)).quartiles == (7.0, 7.0)


def test_inputs_by_position_and_by_name() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x @ y

    a, b = torch.randn(2, 3), torch.randn(3, 4)
    for inputs in ((a, b), [a, b], {"y": b, "x": a}):
        assert measure.count_macs(Both(), inputs) == 2 * 3 * 4
        assert measure.peak_memory(Both(), inputs) == 4 * (6 + 12 + 8)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(ZeroDivisionError), measure.threads(before + 1) as used:
        assert used == torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with measure.threads(None) as used:
        assert used == before


@pytest.mark.slow
@pytest.mark.parametrize(("model", "x"), [(Residual(), X), (Encoder(), torch.randn(2, 6, 10))])
def test_measured_counts_and_memory_are_the_predicted_ones(model: nn.Module, x: torch.Tensor) -> None:
    analysis = pk.DependencyGraph().build_dependency(model, x).analysis
    assert measure.count_macs(model, x) == macs(analysis, {})
    gc.collect()
    # decomposed attention has a row of sums more than the recorded operation
    assert 0.9 < memory(analysis, {}) / measure.peak_memory(model, x) <= 1
    assert model.training


def test_memory_follows_views_until_the_last_one_is_gone() -> None:
    class Peak(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            view = (x + 1)[:1]  # holds all of its base
            return (view + 1) * 2 + x.sum()

    x = torch.randn(100)
    assert measure.peak_memory(Peak(), x) == 4 * (100 + 100 + 1 + 1) + 4
    assert measure.peak_memory(nn.ReLU(inplace=True), x.clone()) == 400


def test_layers_are_timed_by_path_and_shared_ones_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(nn.Linear(4, 2)))
    first, second = measure.time_layers([model, nn.Linear(4, 3)], torch.randn(1, 4), rounds=2, warm_up=1)
    assert set(first) == {"", "0", "1", "3", "3.0"}
    assert set(second) == {""}
    assert all(timing.seconds[0] > 0 for timing in first.values())
    assert len(first["0"].seconds) == 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(pk.ArgumentError, match="at least one round"):
        measure.side_by_side([nn.ReLU()], X, rounds=0)


def test_an_accelerator_is_waited_for_before_and_after_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is: what a run queues would else count for the next one."""
    events: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(device.type))
    measure.timed([lambda: events.append("run")], rounds=2, warm_up=0, device=torch.device("mps"))
    assert events == ["mps", "run", "mps"] * 2
    measure.timed([lambda: events.append("run")], rounds=1, warm_up=0)
    assert events[6:] == ["run"]


def test_where_a_model_is() -> None:
    assert measure.accelerator_of([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]) is None
    elsewhere = SimpleNamespace(parameters=lambda: [torch.empty(1), SimpleNamespace(device=torch.device("xpu", 1))])
    assert measure.accelerator_of([nn.Linear(2, 2), elsewhere]) == torch.device("xpu", 1)  # type: ignore[list-item]

"""Ctrl-C leaves models whole: an interrupt in the middle of a cut comes when the cut is done."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_core.interrupts import held_back
from prunekit_core.modules import surgery
from tests.models import Residual

pytestmark = pytest.mark.usefixtures("interruptible")


def interrupting(call: Callable[..., Any], turn: int) -> Callable[..., Any]:
    """Sends an interrupt to this process in the given call of a function."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == turn:
            os.kill(os.getpid(), signal.SIGINT)
        return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("turn", [1, 2, 7, 15])
def test_a_cut_is_made_whole(turn: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    twin, average, fresh = (copy.deepcopy(model) for _ in range(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    expected = copy.deepcopy(model)
    plan = pk.prune(expected, x).plan
    pk.save(expected, tmp_path / "small.safetensors", plan=plan)
    shapes = [tensor.shape for tensor in expected.state_dict().values()]
    pruner = pk.BasePruner(model, x)
    monkeypatch.setattr(surgery, "_select", interrupting(surgery._select, turn))
    with pytest.raises(KeyboardInterrupt):
        pruner.step(optimizer=optimizer, copies=[average])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert [tensor.shape for tensor in average.state_dict().values()] == shapes
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    assert pruner.graph.applied.kept == plan.kept
    monkeypatch.undo()
    monkeypatch.setattr(surgery, "_select", interrupting(surgery._select, turn))
    with pytest.raises(KeyboardInterrupt):
        plan.apply(twin)
    assert [tensor.shape for tensor in twin.state_dict().values()] == shapes
    monkeypatch.undo()
    monkeypatch.setattr(surgery, "values_like", interrupting(surgery.values_like, turn))
    with pytest.raises(KeyboardInterrupt):
        pk.load(fresh, tmp_path / "small.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), expected.parameters(), strict=True))


def test_an_interrupt_before_the_cut_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    state = copy.deepcopy(model.state_dict())
    pruner = pk.BasePruner(model, x)
    monkeypatch.setattr(pruner.graph, "plan_without", interrupting(pruner.graph.plan_without, 1))
    with pytest.raises(KeyboardInterrupt):
        pruner.step()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not pruner.graph.applied.cuts
    pruner.step()
    assert pruner.graph.applied.cuts


def test_it_comes_once_and_after_everything_nested() -> None:
    done = []

    def work() -> None:
        with held_back():
            with held_back():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            os.kill(os.getpid(), signal.SIGINT)
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_go_through_and_other_threads_have_nothing_to_hold_back() -> None:
    with pytest.raises(ValueError, match="of its own"), held_back():
        raise ValueError("of its own")
    found = []

    def work() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_back():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

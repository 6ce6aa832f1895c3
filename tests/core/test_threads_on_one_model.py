"""Threads on one model: one of them works on it, the others are refused, and it is never cut twice by one decision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.exclusive import exclusive, shared

X = torch.randn(2, 8)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 12), nn.ReLU()), nn.Linear(12, 4))


def elsewhere(work: Callable[[], object]) -> BaseException | None:
    """Does something in another thread, and returns what it raised."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0] if found else None


def test_the_second_thread_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    made = model()
    plan = pk.BasePruner(copy.deepcopy(made), X).plan()
    pruner = pk.BasePruner(made, X)
    pk.save(made, tmp_path / "x.safetensors")
    before = copy.deepcopy(made.state_dict())
    calls: dict[str, Callable[[], object]] = {
        "prune": lambda: pk.prune(made, X),
        "build": lambda: pk.DependencyGraph().build_dependency(made, X),
        "step": pruner.step,
        "apply": lambda: plan.apply(made),
        "a copy": lambda: plan.apply(model(), copies=[made]),
        "mask": lambda: plan.mask(made),
        "load": lambda: pk.load(made, tmp_path / "x.safetensors"),
        "save": lambda: pk.save(made, tmp_path / "y.safetensors"),
        "what it is part of": lambda: pk.prune(nn.Sequential(made, nn.Linear(4, 4)), X),
        "a part of it": lambda: pk.prune(made[2], torch.randn(2, 16)),
    }
    with exclusive(made):
        for name, call in calls.items():
            assert isinstance(elsewhere(call), pk.BusyModelError), name
        assert elsewhere(lambda: pk.prune(model(), X)) is None
    assert not (tmp_path / "y.safetensors").exists()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    for name in ("save", "mask", "load"):
        assert elsewhere(calls[name]) is None, name


def test_threads_may_read_one_model_together() -> None:
    made = model()
    with shared(made):
        assert elsewhere(lambda: pk.DependencyGraph().build_dependency(made, X)) is None
        assert isinstance(elsewhere(lambda: pk.prune(made, X)), pk.BusyModelError)
        assert elsewhere(lambda: pk.prune(model(), X)) is None
    assert elsewhere(lambda: pk.prune(made, X)) is None
    assert made[0].out_features == 8


def test_one_thread_may_nest_and_an_error_sets_free() -> None:
    made = model()
    with exclusive(made), exclusive(made[2]):
        pass
    with pytest.raises(ValueError, match="mine"), exclusive(made):
        raise ValueError("mine")
    assert elsewhere(lambda: pk.prune(made, X)) is None


def test_many_threads_at_once() -> None:
    for _ in range(10):
        made = model()
        errors: list[BaseException] = []
        threads = [threading.Thread(target=attempt, args=(made, errors)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(isinstance(error, pk.PrunekitError) for error in errors)
        assert made(X).shape == (2, 4)
        assert made[0].out_features == made[0].weight.shape[0] == made[2][0].in_features


def attempt(made: nn.Module, errors: list[BaseException]) -> None:
    try:
        pk.prune(made, X)
    except BaseException as error:
        errors.append(error)

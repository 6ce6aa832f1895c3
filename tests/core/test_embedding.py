"""prunekit inside other programs: registries are values, nothing global changes, workers may use it."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit import plugin
from tests.models import Chain


def preferring(sign: int) -> pk.Registry:
    """A registry whose criterion "own" keeps the first units, or the last ones."""

    def own() -> Callable[[pk.Group], torch.Tensor]:
        return lambda group: -sign * torch.arange(group.size(), dtype=torch.float32)

    table = {"own": own}
    return pk.Registry(
        extra={"own": SimpleNamespace(hook=plugin.hookimpl(lambda: table, specname="prunekit_importance"))}
    )


class Last(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)[0]
        return found


def kept(registry: pk.Registry) -> tuple[int, ...]:
    result = pk.prune(Chain(4, 8, 3), torch.randn(1, 4), 0.5, importance="own", registry=registry)
    return result.plan.cuts[0].kept


def test_registries_in_threads_do_not_see_each_other() -> None:
    first, last = preferring(1), preferring(-1)
    together = threading.Barrier(4)

    def work(registry: pk.Registry) -> list[tuple[int, ...]]:
        together.wait(timeout=60)
        return [kept(registry) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [first, last, first, last]))
    assert found == [[(0, 1, 2, 3)] * 3, [(4, 5, 6, 7)] * 3] * 2


def test_registries_can_be_made_in_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        registries = list(pool.map(lambda sign: preferring(sign), [1, -1, 1, -1]))
        defaults = list(pool.map(lambda _: pk.default_registry(), range(4)))
    assert [kept(registry)[0] for registry in registries] == [0, 4, 0, 4]
    assert all(found is defaults[0] for found in defaults)


def idle() -> SimpleNamespace:
    """Makes a plugin that registers nothing."""
    return SimpleNamespace(hook=plugin.hookimpl(lambda: NOTHING, specname="prunekit_budgets"))


NOTHING: dict[str, Any] = {}


def test_a_registry_keeps_what_it_was_given() -> None:
    block, extra = ["schedules"], {"own": idle()}
    registry = pk.Registry(block=block, extra=extra)
    block.append("ops")
    extra["later"] = idle()
    assert [p.name for p in registry.plugins() if p.blocked] == ["prunekit:schedules"]
    again = registry.extended({"more": idle()})
    assert [p.name for p in again.plugins() if p.rank == 2] == ["own", "more"]
    assert [p.name for p in registry.plugins() if p.rank == 2] == ["own"]


def settings() -> dict[str, Any]:
    """Everything of the process that a library should leave alone."""
    return {
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "handlers": list(logging.root.handlers),
        "levels": {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)},
        "root level": logging.root.level,
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook),
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "libraries": (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def test_pruning_prints_nothing_and_changes_nothing_around_it() -> None:
    kept(preferring(1))  # torch itself makes loggers when parts of it are first used
    before = settings()
    model, example = Chain(4, 8, 3), torch.randn(1, 4)
    random = torch.get_rng_state().tolist()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        result = pk.prune(model, example, registry=pk.Registry())
        str(result)
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert settings() == {**before, "random": random}


def test_pruning_in_threads_changes_nothing_around_it() -> None:
    def work(number: int) -> int:
        together.wait(timeout=60)
        model = torch.nn.ModuleList([torch.nn.LSTM(4, 6, batch_first=True), torch.nn.TransformerEncoderLayer(6, 2, 8)])
        for _ in range(3):
            pk.DependencyGraph().build_dependency(torch.nn.Sequential(Last(model[0]), model[1]), torch.randn(2, 3, 4))
        return number

    work_alone, together = 0, threading.Barrier(1)
    assert work(work_alone) == 0
    before, together = settings(), threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]
    assert {**settings(), "random": 0} == {**before, "random": 0}


@pytest.mark.slow
def test_importing_changes_nothing() -> None:
    program = """
import logging, sys, threading, warnings
import torch
from torch._subclasses import fake_tensor  # has loggers of its own
def settings():
    return (list(warnings.filters), list(logging.root.handlers), logging.root.level, sys.excepthook,
            threading.active_count(), torch.get_num_threads())
before = settings()
import prunekit
registry = prunekit.Registry()
assert not [p for p in registry.plugins() if p.error]
assert settings() == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _prune_in_worker(answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(kept(preferring(-1)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_can_prune(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system can't {method}")
    kept(preferring(1))  # the parent has used everything before
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    with warnings.catch_warnings():  # Python warns of forks of processes with threads; the test runner has some
        warnings.simplefilter("ignore", DeprecationWarning)
        worker = context.Process(target=_prune_in_worker, args=(answers,))
        worker.start()
    assert answers.get(timeout=120) == (4, 5, 6, 7)
    worker.join(timeout=60)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_what_is_imported() -> None:
    """Importing the core, and loading all plugins, imports little: that is what keeps both cheap."""
    program = """
import sys
import torch
before = set(sys.modules)
import prunekit
from prunekit.plugin import Registry
core = set(sys.modules)
Registry()
plugins = set(sys.modules)
def packages(names):
    return sorted({name.partition(".")[0] for name in names} - set(sys.stdlib_module_names))
print(packages(core - before))
print(packages(plugins - core))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['attr', 'attrs', 'pluggy', 'prunekit', 'prunekit_core']",
        "['prunekit_core', 'prunekit_plugins', 'safetensors']",
    ]


def test_what_is_opaque_to_one_registry_is_looked_into_by_another() -> None:
    def rule(call: plugin.OpCall) -> list[plugin.Axis]:
        call.pin(call["input"].axes, "mine")
        return list(call["input"].axes)

    closed = plugin.LayerType("closed", opaque=plugin.Opaque(rule, fake=lambda module, x: torch.empty_like(x)))
    table = {torch.nn.ReLU: closed}
    one = pk.Registry(extra={"one": SimpleNamespace(h=plugin.hookimpl(lambda: table, specname="prunekit_layer_types"))})
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    def groups(registry: pk.Registry) -> list[str]:
        graph = pk.DependencyGraph(registry).build_dependency(model, torch.randn(2, 4))
        return list(graph.analysis.groups)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(groups, [one, pk.Registry(), one, pk.Registry()])) == [[], ["0"], [], ["0"]]

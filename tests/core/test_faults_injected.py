"""Whatever breaks off a cut, a load or a mask, on whatever line: the model is the old one or the new one.

``PRUNEKIT_EVERY_FAULT=1`` injects on every line that is executed; otherwise on a sample.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit import plugin
from prunekit_core.modules.tree import named_tensors
from prunekit_plugins.compensation.run import Compensation, Repaired
from prunekit_plugins.layers import prune_conv_out_channels, prune_recurrent_out_channels
from prunekit_plugins.prune import call as one_call
from prunekit_plugins.prune.call import PruneResult
from tests.core.injection import InjectedError, Lines, Operations, TimeUpError, alarm, places, raised, snapshot


class Mixed(nn.Module):
    """A stand-in for attention, batch norm statistics, a rescaled constant, a size in an attribute, shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.up = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.down = nn.Linear(12, 6)
        self.head = nn.Linear(12, 6)
        self.head.weight = self.down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.up(x).flatten(0, 1)).view(x.shape[0], -1, self.width)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.down(h) + self.head(h * h.shape[-1] ** -0.5)


X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


@attrs.define
class Scene:
    """Models that something is done to.

    Attributes:
        models: Everything that may change.
        act: What is done.
        optimizer: An optimizer whose state may change.
        lost: Whether an error must leave everything as it was, because nobody gets what is returned.
        plans: Whether a cut is rehearsed as well.
    """

    models: list[nn.Module]
    act: Callable[[], object]
    optimizer: torch.optim.Optimizer | None = None
    lost: bool = False
    plans: bool = False

    def state(self) -> dict[str, Any]:
        return snapshot(*self.models, optimizer=self.optimizer)


def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


PLAN = pk.BasePruner(model(), X, "magnitude").plan()


def _history() -> list[plugin.Removal]:
    pruner = pk.BasePruner(model(), X, "magnitude")
    pruner.step()
    return pruner.pruning_history()


HISTORY = _history()
PROTOCOL = pk.prune(model(), X).protocol.to_json()


def trained() -> tuple[Mixed, torch.optim.Optimizer]:
    made = model()
    optimizer = torch.optim.Adam(made.parameters())
    made(X).square().sum().backward()
    optimizer.step()
    return made, optimizer


def applied(folder: Path) -> Scene:
    made, optimizer = trained()
    average = copy.deepcopy(made)
    return Scene([made, average], lambda: PLAN.apply(made, optimizer=optimizer, copies=[average]), optimizer)


def masked(folder: Path) -> Scene:
    made, _ = trained()
    return Scene([made], lambda: PLAN.mask(made))


def loaded(folder: Path, assign: bool = False) -> Scene:
    source = PLAN.apply(trained()[0])
    pk.save(source, folder / "x.safetensors", plan=PLAN)
    made, _ = trained()
    return Scene([made], lambda: pk.load(made, folder / "x.safetensors", assign=assign))


def stepped(folder: Path) -> Scene:
    made, optimizer = trained()
    pruner = pk.BasePruner(made, X, "magnitude", iterative_steps=2)
    plan = pruner.plan()
    pruner.plan = lambda: plan  # type: ignore[method-assign]
    return Scene([made], lambda: pruner.step(optimizer=optimizer), optimizer)


def called(folder: Path) -> Scene:
    """The end of ``prune``: from where the model is changed to where the result is returned."""
    made, optimizer = trained()
    pruner = pk.BasePruner(made, X, "magnitude")
    plan = pruner.plan()
    protocol = pk.Protocol.from_json(PROTOCOL)
    decided = PruneResult(made, plan, pruner.report(), plan.preview(), {}, protocol, pruner.graph)
    values = {name: tensor * 2 for name, tensor in named_tensors(PLAN.apply(model())).items() if "weight" in name}
    repaired = Repaired(values, Compensation((), {}, (1.0, 0.0)), on_disk=False)
    return Scene([made], lambda: one_call._cut(pruner, decided, optimizer, repaired, ()), optimizer, lost=True)


def resumed(folder: Path) -> Scene:
    made, optimizer = trained()
    pruner = pk.BasePruner(made, X, "magnitude", iterative_steps=2)
    return Scene([made], lambda: pruner.resume(PLAN, 1, optimizer=optimizer), optimizer, plans=True)


def replayed(folder: Path) -> Scene:
    """A pruning history that is read back."""
    made, _ = trained()
    graph = pk.DependencyGraph().build_dependency(made, X)
    return Scene([made], lambda: graph.load_pruning_history(HISTORY), plans=True)


def convolution(folder: Path) -> Scene:
    layer = nn.Conv2d(4, 6, 3)
    return Scene([layer], lambda: prune_conv_out_channels(layer, [1, 4]))


def recurrent(folder: Path) -> Scene:
    layer = nn.LSTM(4, 6, 2, bidirectional=True)
    return Scene([layer], lambda: prune_recurrent_out_channels(layer, [1, 4]))


SCENES: dict[str, Callable[[Path], Scene]] = {
    "apply": applied,
    "mask": masked,
    "load": loaded,
    "load, assigned": lambda folder: loaded(folder, assign=True),
    "step": stepped,
    "prune": called,
    "resume": resumed,
    "history": replayed,
    "convolution": convolution,
    "recurrent": recurrent,
}


def check(make: Callable[[Path], Scene], folder: Path, run: Callable[[Scene, int | None], int]) -> None:
    """Runs a scene once undisturbed and once with each fault; everything must be old or new."""
    scene = make(folder)
    old = scene.state()
    count = run(scene, None)
    new = scene.state()
    assert old != new
    seen = set()
    for place in places(count):
        scene = make(folder)
        assert scene.state() == old
        try:
            run(scene, place)
            ended = True
        except (InjectedError, TimeUpError, torch.OutOfMemoryError):
            ended = False
        except pk.PrunekitError:
            if not scene.plans:  # else a replay or a plugin raised, which is told as theirs
                raise
            ended = False
        state = scene.state()
        seen.add(state == new)
        assert state in ((new,) if ended else (old,) if scene.lost else (old, new)), f"torn at {place} of {count}"
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert gc.isenabled()
    assert False in seen, "no fault did anything"


@pytest.fixture(autouse=True)
def same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # raised between opening and entering `with`
@pytest.mark.parametrize("name", SCENES)
def test_an_exception_on_any_line(name: str, tmp_path: Path) -> None:
    def run(scene: Scene, at: int | None) -> int:
        lines = Lines(at, raised, leaving_out=("interrupts", "record/run_settings"))
        with lines.running():
            scene.act()
        return lines.count

    check(seeded(SCENES[name]), tmp_path, run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", SCENES)
def test_a_signal_on_any_line(name: str, tmp_path: Path) -> None:
    def run(scene: Scene, at: int | None) -> int:
        with alarm() as fault:
            lines = Lines(at, fault)
            with lines.running():
                scene.act()
            return lines.count

    check(seeded(SCENES[name]), tmp_path, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_no_memory_at_any_operation(name: str, tmp_path: Path) -> None:
    def run(scene: Scene, at: int | None) -> int:
        with Operations(at) as operations:
            scene.act()
        return operations.count

    check(seeded(SCENES[name]), tmp_path, run)


def seeded(make: Callable[[Path], Scene]) -> Callable[[Path], Scene]:
    def made(folder: Path) -> Scene:
        torch.manual_seed(0)
        return make(folder)

    return made


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # raised between opening and entering `with`
def test_files_are_old_or_new_and_no_others_are_left(tmp_path: Path) -> None:
    """Whatever ends a save on whatever line: the file is the old one or the new one, and alone."""
    first, second = trained()[0], PLAN.apply(trained()[0])
    for size in (None, 600):
        folder = tmp_path / str(size)
        folder.mkdir()
        place = folder if size else folder / "x.safetensors"
        pk.save(second, place, plan=PLAN, max_shard_size=size)
        new = contents(folder)
        for fault in ("exception", "signal"):
            with alarm() as signalled:
                count = 1
                numbers = [None]
                while numbers:
                    number = numbers.pop(0)
                    clear(folder)
                    pk.save(first, place, max_shard_size=size)
                    old = contents(folder)
                    left_out = (
                        ("interrupts", "record/run_settings", "modules/exclusive") if fault == "exception" else ()
                    )
                    lines = Lines(number, raised if fault == "exception" else signalled, left_out)
                    try:
                        with lines.running():
                            pk.save(second, place, plan=PLAN, max_shard_size=size)
                    except (InjectedError, TimeUpError):
                        assert number is not None
                    if number is None:
                        count = lines.count
                        numbers = list(places(count))
                        assert contents(folder) == new
                    else:
                        assert contents(folder) in (old, new), f"{fault} at {number} of {count}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("name", ["prune", "apply", "mask", "load", "step"])
def test_what_is_made_under_inference_mode_can_be_trained(name: str, tmp_path: Path) -> None:
    scene = SCENES[name](tmp_path)
    with torch.inference_mode():
        scene.act()
    for made in scene.models:
        assert not any(tensor.is_inference() for tensor in [*made.parameters(), *made.buffers()])
        made.zero_grad()
        made(X).square().sum().backward()
        assert all(parameter.grad is not None for parameter in made.parameters())


def test_a_model_that_was_made_in_inference_mode_stays_one() -> None:
    with torch.inference_mode():
        made = model()
    PLAN.apply(made)
    assert all(parameter.is_inference() for parameter in made.parameters())
    expected = PLAN.apply(model())
    with torch.no_grad():  # other kernels may run
        torch.testing.assert_close(made(X), expected(X))


class Frozen(nn.Module):
    """Refuses new numbers once it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.width = nn.Linear(6, 12), nn.Linear(12, 4), 12
        self.ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("ready") and isinstance(value, int):
            raise AttributeError(f"{name} is frozen")
        super().__setattr__(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu().view(-1, self.width))


def test_sizes_are_set_where_they_are_whatever_a_class_says() -> None:
    made = Frozen()
    pk.prune(made, X)
    assert (made.width, made.up.out_features) == (6, 6)
    assert made(X).shape == (12, 4)

"""The callback in Lightning's own trainer, on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from prunekit_plugins.cli.commands.demo import data, networks
from prunekit_plugins.pruners import GrowingRegPruner
from tests.integrations.test_training import same

pl = pytest.importorskip("lightning.pytorch", reason="needs prunekit[lightning]")
integration = pytest.importorskip("prunekit_plugins.integrations.lightning", reason="needs prunekit[lightning]")

BATCHES = 4
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),  # Lightning asks PyTorch the old way
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),  # resumed runs write elsewhere on purpose
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),  # 128 images need none
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),  # the epochs are short
]


class KilledError(Exception):
    """Raised in the middle of a training."""


class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A network under `net`, with Adam and a schedule."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = networks.ConvNet(8)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class Kill(pl.Callback):  # type: ignore[misc, name-defined]
    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.after:
            raise KilledError


class Notes(pl.loggers.Logger):  # type: ignore[misc, name-defined]
    """A logger that keeps what it is told."""

    name, version = "notes", 0

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """There are none."""


def loaders() -> tuple[Any, Any]:
    digits = data.load(0)
    train = TensorDataset(digits.images[:128], digits.labels[:128])
    held_out = TensorDataset(digits.held_out_images[:64], digits.held_out_labels[:64])
    return DataLoader(train, 32), DataLoader(held_out, 64)


def make(folder: Path, at: tuple[int, ...], unit: str = "steps", **options: Any) -> tuple[Any, Any, Any, Any]:
    """A module, its callback, its trainer and its logger, as at the start."""
    net = Net()
    pruner = GrowingRegPruner(
        net.net, torch.randn(2, 1, 8, 8), pruning_ratio=0.5, iterative_steps=len(at), delta_reg=1e-2
    )
    callback = integration.PruningCallback(pruner, at, unit=unit, grow_every=1)
    more = options.pop("callbacks", [])
    notes = Notes()
    checkpoints = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=notes,
        callbacks=[callback, checkpoints, *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    return net, callback, trainer, notes


@pytest.mark.slow
@pytest.mark.parametrize(("at", "unit", "killed"), [((3, 6), "steps", 9), ((1, 2), "epochs", 9), ((4, 8), "steps", 5)])
def test_killed_and_resumed_ends_where_the_whole_run_ends(
    tmp_path: Path, at: tuple[int, ...], unit: str, killed: int
) -> None:
    train, held_out = loaders()
    whole, callback, trainer, notes = make(tmp_path / "whole", at, unit)
    trainer.fit(whole, train, held_out)
    scale = 1 if unit == "steps" else BATCHES
    assert [event.after for event in callback.training.events] == list(at)
    logged = [(step, metrics) for step, metrics in notes.metrics if "prunekit/params" in metrics]
    assert logged == [(time * scale, event.metrics()) for time, event in zip(at, callback.training.events, strict=True)]
    assert whole.net.stem[0].out_channels == 4
    (optimizer,) = trainer.optimizers
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in whole.parameters())
    _module, _, stopped, _ = make(tmp_path / "part", at, unit, callbacks=[Kill(killed)])
    with pytest.raises(KilledError):
        stopped.fit(_module, train, held_out)
    last = max((tmp_path / "part").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    resumed, again, trainer_again, _ = make(tmp_path / "rest", at, unit)
    trainer_again.fit(resumed, train, held_out, ckpt_path=last)
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(trainer.optimizers[0].state_dict(), trainer_again.optimizers[0].state_dict())
    assert resumed.losses == whole.losses[int(last.stem.partition("=")[2]) :]
    assert again.state_dict() == callback.state_dict()
    assert "on_load_checkpoint" not in vars(resumed)


def test_a_checkpoint_from_before_an_epochs_end_is_caught_up(tmp_path: Path) -> None:
    train, held_out = loaders()
    whole, _, trainer, _ = make(tmp_path / "whole", (1, 2), "epochs")
    trainer.fit(whole, train, held_out)
    resumed, callback, again, _ = make(tmp_path / "rest", (1, 2), "epochs")
    early = tmp_path / "whole" / "step=4.ckpt"  # written before the cut at the end of the first epoch
    state = torch.load(early, weights_only=True)
    assert integration.plan_of(state).kept == {}
    again.fit(resumed, train, held_out, ckpt_path=early)
    assert [event.after for event in callback.training.events] == [1, 2]
    assert same(whole.state_dict(), resumed.state_dict())


def test_the_plan_in_a_checkpoint_gives_the_shapes(tmp_path: Path) -> None:
    net, _, trainer, _ = make(tmp_path, (2, 3))
    trainer.fit(net, *loaders())
    checkpoint = torch.load(tmp_path / "step=12.ckpt", weights_only=True)
    fresh = Net()
    integration.plan_of(checkpoint).apply(fresh.net)
    fresh.load_state_dict(checkpoint["state_dict"])
    assert same(fresh.state_dict(), net.state_dict())
    with pytest.raises(pk.CheckpointError, match="holds no plan"):
        integration.plan_of({"callbacks": {}})


def test_testing_after_training_and_a_checkpoint_of_another_step(tmp_path: Path) -> None:
    train, held_out = loaders()
    net, _, trainer, _ = make(tmp_path, (3, 6))
    trainer.fit(net, train, held_out)
    expected = trainer.validate(net, held_out, verbose=False)
    assert trainer.validate(net, held_out, ckpt_path=tmp_path / "step=12.ckpt", verbose=False) == expected
    with pytest.raises(pk.CheckpointError, match="pruned otherwise than the checkpoint"):
        trainer.validate(net, held_out, ckpt_path=tmp_path / "step=4.ckpt", verbose=False)


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    net, callback, trainer, _ = make(tmp_path, (2, 5), accumulate_grad_batches=2)
    calls: list[int] = []
    regularize = callback.training.regularizer.regularize
    callback.training.regularizer.regularize = lambda: (calls.append(trainer.global_step), regularize())
    trainer.fit(net, *loaders())
    assert [event.after for event in callback.training.events] == [2, 5]
    assert calls == [0, 1, 2, 3, 4]  # once per step, until the last cut


def test_what_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    _, callback, trainer, _ = make(tmp_path, (2, 3))
    with pytest.raises(pk.ArgumentError, match="for another model"):
        trainer.fit(Net(), *loaders())
    pruner = pk.BasePruner(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(pk.ArgumentError, match="unit must be"):
        integration.PruningCallback(pruner, [1], unit="batches")

    class Many:
        world_size = 2

    with pytest.raises(pk.ArgumentError, match="one process only") as caught:
        callback.setup(Many(), Net(), "fit")
    assert "world_size is 2" in caught.value.why

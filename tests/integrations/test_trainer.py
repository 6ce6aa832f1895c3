"""The callback in the Trainer of transformers: a small BERT reads the digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.cli.commands.demo import data
from prunekit_plugins.pruners import GroupNormPruner
from tests.integrations.test_training import same

transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
pytest.importorskip("accelerate", reason="needs prunekit[hf]")
integration = pytest.importorskip("prunekit_plugins.integrations.trainer", reason="needs prunekit[hf]")

BATCHES = 4


class KilledError(Exception):
    """Raised in the middle of a training."""


class Kill(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KilledError


def network() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=17, max_position_embeddings=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=10,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def dataset() -> list[dict[str, torch.Tensor]]:
    """Digits as sequences of 16 grey levels out of 17."""
    digits = data.load(0)
    grey = nn.functional.avg_pool2d(digits.images[:64], 2).flatten(1).sub(data.BLANK).mul(16 / 2.6).round().long()
    return [{"input_ids": ids, "labels": label} for ids, label in zip(grey, digits.labels[:64], strict=True)]


EXAMPLE = {"input_ids": torch.arange(16).reshape(1, 16).repeat(2, 1)}


def make(folder: Path, at: tuple[int, ...], unit: str = "steps", **options: Any) -> tuple[Any, Any, Any]:
    """A model, its callback and its trainer, as at the start."""
    model = network()
    pruner = GroupNormPruner(model, EXAMPLE, pruning_ratio=0.5, iterative_steps=len(at), reg=1e-3)
    callback = integration.PruningCallback(pruner, at, unit=unit)
    more = options.pop("callbacks", [])
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=2e-3, use_cpu=True,
        save_steps=2, logging_steps=1, report_to=[], disable_tqdm=True, dataloader_pin_memory=False, seed=3, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=dataset(), callbacks=[callback, *more])
    trainer.remove_callback(transformers.PrinterCallback)
    return model, callback, trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize(("at", "unit", "killed"), [((3, 6), "steps", 7), ((1, 2), "epochs", 9)])
def test_killed_and_resumed_ends_where_the_whole_run_ends(
    tmp_path: Path, at: tuple[int, ...], unit: str, killed: int
) -> None:
    whole, callback, trainer = make(tmp_path / "whole", at, unit)
    trainer.train()
    scale = 1 if unit == "steps" else BATCHES
    events = callback.training.events
    assert [event.after for event in events] == list(at)
    logged = [entry for entry in trainer.state.log_history if "prunekit/params" in entry]
    assert [{k: v for k, v in entry.items() if k.startswith("prunekit")} for entry in logged] == [
        event.metrics() for event in events
    ]
    assert whole.bert.embeddings.LayerNorm.weight.shape == (8,)
    state = trainer.optimizer.state
    assert all(state[p]["exp_avg"].shape == p.shape for p in whole.parameters() if p in state)
    assert len(state) > 10
    _model, _, stopped = make(tmp_path / "part", at, unit, callbacks=[Kill(killed)])
    with pytest.raises(KilledError):
        stopped.train()
    last = max((tmp_path / "part").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    done = int(last.name.partition("-")[2])
    assert done >= min(at) * scale
    resumed, again, trainer_again = make(tmp_path / "rest", at, unit)
    again.rebuild(last)
    trainer_again.train(resume_from_checkpoint=str(last))
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(trainer.optimizer.state_dict()["state"], trainer_again.optimizer.state_dict()["state"])
    assert losses(trainer_again) == losses(trainer)
    assert again.training.state_dict() == callback.training.state_dict()


def test_the_file_beside_the_weights(tmp_path: Path) -> None:
    model, _, trainer = make(tmp_path, (2, 3))
    trainer.train()
    folder = tmp_path / "checkpoint-12"
    assert [path.name for path in folder.iterdir() if "prunekit" in path.name] == ["prunekit.json"]
    assert json.loads((folder / "prunekit.json").read_text())["step"] == 2
    fresh = network()
    integration.plan_of(folder).apply(fresh)
    fresh.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    assert same(fresh.state_dict(), model.state_dict())
    small = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    other = integration.PruningCallback(pk.BasePruner(small, torch.randn(1, 2)), [1])
    with pytest.raises(pk.CheckpointError, match="other cuts"):
        other.rebuild(folder)
    for text, message in ((None, "holds no plan"), ("{", "malformed"), ("[]", "malformed")):
        (folder / "prunekit.json").unlink(missing_ok=True)
        if text is not None:
            (folder / "prunekit.json").write_text(text)
        with pytest.raises(pk.CheckpointError, match=message):
            integration.plan_of(folder)


@pytest.mark.slow
def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    _, callback, trainer = make(tmp_path, (2, 5), gradient_accumulation_steps=2)
    calls: list[int] = []
    regularize = callback.training.regularizer.regularize
    callback.training.regularizer.regularize = lambda: (calls.append(trainer.state.global_step), regularize())
    trainer.train()
    assert [event.after for event in callback.training.events] == [2, 5]
    assert calls == [0, 1, 2, 3, 4]  # once per step, until the last cut


@pytest.mark.slow
def test_criteria_that_need_gradients_find_them(tmp_path: Path) -> None:
    model = network()
    pruner = pk.BasePruner(model, EXAMPLE, importance="taylor")
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        save_strategy="no",
    )  # fmt: skip
    callback = integration.PruningCallback(pruner, [1])
    trainer = transformers.Trainer(model, arguments, train_dataset=dataset(), callbacks=[callback])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    assert model.bert.embeddings.LayerNorm.weight.shape == (8,)


@pytest.mark.slow
def test_what_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    _, callback, trainer = make(tmp_path, (2, 3))
    other = transformers.Trainer(network(), trainer.args, train_dataset=dataset(), callbacks=[callback])
    with pytest.raises(pk.ArgumentError, match="for another model"):
        other.train()

    class Many:
        world_size, n_gpu = 2, 1

    with pytest.raises(pk.ArgumentError, match="one process only") as caught:
        callback.on_train_begin(Many(), None, None)
    assert "world_size=2" in caught.value.why

"""The loss of distillation in loops of one's own: plain, Hugging Face's Trainer, Lightning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunekit as pk
from tests.distill.models import batches, inputs, pair, values
from tests.distill.test_language import cut_llama, tokens


def test_the_loss_is_that_of_distill() -> None:
    student, teacher, plan = pair()
    options: dict[str, Any] = {"plan": plan, "weights": {"logits": 1, "hidden": 0.5}, "temperature": 3.0}
    data = batches(3)
    criterion = pk.DistillationLoss(student, teacher, data, **options)
    student.train()
    torch.manual_seed(0)
    total = criterion(student, data[0])
    plain, _, _ = pair()
    result = pk.distill(plain, teacher, data, **options, steps=1, lr=1e-12)
    assert float(criterion.last["logits"]) == pytest.approx(result.losses["logits"][0], rel=1e-4)
    assert float(criterion.last["hidden"]) == pytest.approx(result.losses["hidden"][0], rel=1e-4)
    expected = criterion.last["logits"] + 0.5 * criterion.last["hidden"]
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-6)
    total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_loop_of_ones_own_trains() -> None:
    student, teacher, plan = pair()
    teacher.train()
    criterion = pk.DistillationLoss(student, teacher, batches(), plan=plan, weights={"logits": 1, "hidden": 1})
    before = values(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    student.train()
    for _ in range(20):
        for batch in batches():
            optimizer.zero_grad()
            loss = criterion(student, batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in values(teacher).items())
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_what_does_not_fit_is_told_at_the_start() -> None:
    student, _, _ = pair()
    with pytest.raises(pk.ArgumentError, match=r"The outputs of student and teacher don't match."):
        pk.DistillationLoss(student, nn.Linear(8, 6), batches())
    criterion = pk.DistillationLoss(student, nn.Linear(8, 5), batches())
    with pytest.raises(pk.ArgumentError, match=r"The loss is for another student."):
        criterion(copy.deepcopy(student), batches()[0])


def test_a_wrapped_student_goes_through_its_wrapper() -> None:
    student, teacher, plan = pair()
    criterion = pk.DistillationLoss(student, teacher, batches(), plan=plan, weights={"logits": 1, "hidden": 1})
    wrapped, runs = nn.DataParallel(student), []
    wrapped.register_forward_hook(lambda *call: runs.append(1))
    criterion(wrapped, batches()[0])
    assert runs == [1]


def test_the_trainer_of_transformers_distills(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
    pytest.importorskip("accelerate", reason="needs prunekit[hf]")
    student, teacher, plan = cut_llama()
    data = [{name: tensor[0] for name, tensor in tokens(n, [8], labels=True).items()} for n in range(16)]
    criterion = pk.DistillationLoss(
        student, teacher, [tokens(0, [8, 8])], plan=plan, weights={"logits": 1, "hidden": 0.5}
    )

    class Distiller(transformers.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Tensor:
            return criterion(model, inputs)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=10, per_device_train_batch_size=4, learning_rate=3e-3, use_cpu=True,
        save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Distiller(student, arguments, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning")
def test_lightning_distills(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="needs prunekit[lightning]")
    student, teacher, plan = pair()
    criterion = pk.DistillationLoss(student, teacher, batches(), plan=plan, weights={"logits": 1, "hidden": 0.5})
    losses: list[float] = []

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def training_step(self, batch: tuple[Tensor], index: int) -> Tensor:
            loss = criterion(self.student, batch[0])
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.student.parameters(), lr=3e-3)

    trainer = pl.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    student.train()
    trainer.fit(Module(), DataLoader(TensorDataset(inputs(96)), batch_size=16))
    assert losses[-1] < losses[0] / 3

"""Language models: padding, labels, losses that the model computes itself, adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit_plugins.distill.losses import divergences
from tests.distill.models import batches, pair, same, values
from tests.distill.test_hidden import llama


def tokens(seed: int, lengths: list[int], *, labels: bool = False) -> dict[str, Tensor]:
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(96, mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"labels": ids.masked_fill(mask == 0, -100)} if labels else {})


def cut_llama(**options: Any) -> tuple[nn.Module, nn.Module, pk.Plan]:
    teacher = llama(2)
    student = copy.deepcopy(teacher)
    return student, teacher, pk.prune(student, tokens(0, [8, 8]), **({"ratio": 0.25} | options)).plan


def test_positions_of_padding_do_not_count() -> None:
    student, teacher, plan = cut_llama()
    batch = tokens(1, [9, 4, 6])
    result = pk.distill(
        student, teacher, [batch], plan=plan, weights={"logits": 1, "hidden": 1}, steps=1, lr=1e-9, temperature=1.5
    )
    plain, _, _ = cut_llama()
    with torch.no_grad():
        mine, wanted = plain(**batch).logits, teacher(**batch).logits
    counted = batch["attention_mask"].bool()
    expected = divergences(mine[counted], wanted[counted], 1.5).mean()
    assert result.losses["logits"][0] == pytest.approx(float(expected), rel=1e-4)
    whole = divergences(mine, wanted, 1.5).mean()
    assert abs(float(whole) - float(expected)) > 1e-3 * float(expected)


def test_the_loss_that_a_model_computes_is_the_loss_of_labels() -> None:
    student, teacher, _ = cut_llama()
    batch = tokens(1, [9, 4, 6], labels=True)
    result = pk.distill(student, teacher, [batch], weights={"labels": 1}, steps=1, lr=1e-9)
    plain, _, _ = cut_llama()
    with torch.no_grad():
        assert result.losses["labels"][0] == pytest.approx(float(plain(**batch).loss), rel=1e-5)


def test_adapters_are_trained_and_merged() -> None:
    pytest.importorskip("peft")
    student, teacher, _ = cut_llama()
    layers = {name: type(module) for name, module in student.named_modules()}
    before, flags = values(student), [p.requires_grad for p in student.parameters()]
    objects = [id(parameter) for parameter in student.parameters()]
    data = [tokens(n, [8, 8, 5]) for n in range(4)]
    result = pk.distill(student, teacher, data, train="lora", epochs=30, lr=1e-2, held_out=data[:2])
    assert result.held_out[-1][1] < result.held_out[0][1] / 2
    assert {name: type(module) for name, module in student.named_modules()} == layers
    assert [p.requires_grad for p in student.parameters()] == flags
    assert [id(parameter) for parameter in student.parameters()] == objects
    after = values(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name or "lm_head" in name}
    delta = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert int(torch.linalg.matrix_rank(delta, atol=1e-4)) <= 16


def test_a_configuration_of_adapters_is_taken() -> None:
    peft = pytest.importorskip("peft")
    student, teacher, _ = cut_llama()
    before = values(student)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    pk.distill(student, teacher, [tokens(0, [8, 8])], train=config, steps=3, lr=1e-2)
    changed = {name for name, tensor in values(student).items() if not torch.equal(before[name], tensor)}
    assert changed == {f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}


def test_a_run_with_adapters_that_breaks_off_leaves_none() -> None:
    pytest.importorskip("peft")
    student, teacher, _ = cut_llama()
    before, layers = values(student), [type(module) for module in student.modules()]

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pk.distill(student, teacher, [tokens(0, [8, 8])], train="lora", steps=4, lr=1e-2, progress=interrupt)
    assert same(values(student), before)
    assert [type(module) for module in student.modules()] == layers


def test_a_student_without_linear_layers_has_no_adapters() -> None:
    pytest.importorskip("peft")
    student, teacher = nn.Sequential(nn.Conv1d(8, 5, 1)), nn.Sequential(nn.Conv1d(8, 5, 1))
    with pytest.raises(pk.ArgumentError, match=r"The student has no linear layer to adapt."):
        pk.distill(student, teacher, [torch.randn(4, 8, 3)], train="lora", steps=1)


def test_adapters_go_on_from_a_checkpoint(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    options: dict[str, Any] = {"train": "lora", "steps": 6, "lr": 1e-2}
    whole, teacher, _ = cut_llama()
    data = [tokens(n, [8, 8]) for n in range(3)]
    pk.distill(whole, teacher, data, **options)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    student, _, _ = cut_llama()
    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        pk.distill(student, teacher, data, **options, checkpoint=file, save_every=2, progress=stop)
    pk.distill(student, teacher, data, **options, checkpoint=file, save_every=2)
    assert same(values(student), values(whole))


def test_without_peft_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    student, teacher, _ = pair()
    with pytest.raises(pk.ArgumentError, match=r'train="lora" needs peft.'):
        pk.distill(student, teacher, batches(), train="lora", steps=1)

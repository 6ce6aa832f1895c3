"""Hidden states are matched unit by unit, by the plan: where they are narrower, where branches and layers are gone."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

import prunekit as pk
from prunekit_core.rehearse.removals import draft_without
from prunekit_plugins.distill.hidden import HiddenState, ModuleOutputs, match_hidden, paired
from tests.distill.models import batches, inputs, net, pair

REGISTRY = pk.default_registry()


def masked(plan: pk.Plan, model: nn.Module) -> nn.Module:
    """The teacher with the removed units zeroed: its hidden states are those of the student, where units are left."""
    return plan.mask(copy.deepcopy(model))


def compared(
    states: tuple[HiddenState, ...], student: nn.Module, teacher: nn.Module, run: object
) -> dict[str, tuple[Tensor, Tensor]]:
    seen = [
        ModuleOutputs(student, {state.student: state.place for state in states}),
        ModuleOutputs(teacher, {state.teacher: state.place for state in states}),
    ]
    for model, outputs in zip((student, teacher), seen, strict=True):
        with outputs.watching(), torch.no_grad():
            outputs.listen()
            run(model)  # type: ignore[operator]
    return paired(states, seen[0].take(), seen[1].take(), "batch 0")


def test_kept_units_of_every_block_are_compared() -> None:
    student, teacher, plan = pair()
    states = match_hidden(teacher, plan, inputs(2), REGISTRY)
    assert [state.teacher for state in states] == ["blocks.0", "blocks.1", "blocks.2"]
    kept = next(cut.kept for cut in plan.cuts if cut.size == 12)
    assert [state.kept[1].tolist() for state in states] == [list(kept)] * 3
    found = compared(states, student, masked(plan, teacher), lambda model: model(inputs(4, 1)))
    for own, wanted in found.values():
        assert own.shape == (4, 6)
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_layers_that_are_named_are_compared() -> None:
    student, teacher, plan = pair()
    states = match_hidden(teacher, plan, inputs(2), REGISTRY, ["blocks.1.up", "head"])
    assert [(state.teacher, {dim: len(p) for dim, p in state.kept.items()}) for state in states] == [
        ("blocks.1.up", {1: 8}),
        ("head", {}),
    ]
    found = compared(states, student, masked(plan, teacher), lambda model: model(inputs(4, 1)))
    torch.testing.assert_close(*found["head"], rtol=1e-4, atol=1e-5)


def test_maps_are_matched_along_their_channels() -> None:
    torch.manual_seed(0)
    teacher = torchvision.models.resnet18(num_classes=10).eval()
    student, images = copy.deepcopy(teacher), torch.randn(2, 3, 32, 32)
    plan = pk.prune(student, images, ratio=0.25, verify="never").plan
    states = match_hidden(teacher, plan, images, REGISTRY)
    assert [state.student for state in states] == [f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1)]
    found = compared(states, student.eval(), masked(plan, teacher), lambda model: model(images))
    assert found["layer2.1"][0].shape == (2, 96, 4, 4)
    for own, wanted in found.values():
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)


def llama(layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_layers_that_are_gone_are_skipped() -> None:
    teacher, tokens = llama(), {"input_ids": torch.arange(16).reshape(2, 8)}
    student = copy.deepcopy(teacher)
    names = [f"model.layers.{n}.{part}" for n in (1, 2) for part in ("self_attn", "mlp")]
    plan = pk.prune(student, tokens, ratio=0.25, branches=names).plan
    states = match_hidden(teacher, plan, tokens, REGISTRY)
    assert [state.teacher for state in states] == ["model.layers.0", "model.layers.3"]
    found = compared(states, student, teacher, lambda model: model(**tokens))
    assert [own.shape for own, _ in found.values()] == [(2, 8, 24)] * 2


def test_layers_with_other_numbers_keep_their_counterparts() -> None:
    teacher = net()
    graph = pk.Graph.of(teacher, inputs(2))
    plan = draft_without(graph.model, graph.drafts, ["blocks.1.up"])
    student = plan.apply(copy.deepcopy(teacher))
    states = match_hidden(teacher, plan, inputs(2), REGISTRY)
    assert [(state.teacher, state.student) for state in states] == [("blocks.0", "blocks.0"), ("blocks.2", "blocks.1")]
    found = compared(states, student, masked(plan, teacher), lambda model: model(inputs(4, 1)))
    torch.testing.assert_close(*found["blocks.1"])


def test_a_block_without_one_of_its_branches_is_still_compared() -> None:
    teacher, tokens = llama(2), {"input_ids": torch.arange(16).reshape(2, 8)}
    student = copy.deepcopy(teacher)
    plan = pk.prune(student, tokens, branches=["model.layers.1.mlp"]).plan
    states = match_hidden(teacher, plan, tokens, REGISTRY)
    assert [state.teacher for state in states] == ["model.layers.0", "model.layers.1"]
    found = compared(states, student, masked(plan, teacher), lambda model: model(**tokens))
    for own, wanted in found.values():
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_a_student_without_layers_gets_closer_to_its_teacher() -> None:
    teacher = llama()
    data = [
        {"input_ids": torch.randint(96, (4, 12), generator=torch.Generator().manual_seed(n)),
         "attention_mask": (torch.arange(12) < torch.tensor([[12], [9], [5], [12]])).long()}
        for n in range(4)
    ]  # fmt: skip
    student = copy.deepcopy(teacher)
    plan = pk.prune(student, data[0], branches=["model.layers.1.mlp", "model.layers.2.self_attn"]).plan
    result = pk.distill(
        student, teacher, data, plan=plan, weights={"logits": 1, "hidden": 1}, epochs=20, lr=3e-3, held_out=data[:1]
    )
    assert result.held_out[-1][1] < result.held_out[0][1] / 2
    assert result.losses["hidden"][-1] < result.losses["hidden"][0] / 2


def test_a_plan_of_another_model_is_told() -> None:
    _, _, plan = pair()
    with pytest.raises(pk.PlanError, match=r"The plan was made for another model."):
        match_hidden(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), plan, inputs(2), REGISTRY)


def test_a_model_without_blocks_wants_names() -> None:
    chain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    student = copy.deepcopy(chain)
    plan = pk.prune(student, inputs(2), ratio=0.5).plan
    with pytest.raises(pk.ArgumentError, match=r"There are no hidden states to compare.") as caught:
        match_hidden(chain, plan, inputs(2), REGISTRY)
    assert caught.value.why == "no module adds branches up"
    result = pk.distill(student, chain, batches(), plan=plan, weights={"hidden": 1}, hidden=["0"], steps=150, lr=3e-2)
    assert result.losses["hidden"][-1] < 0.05


def test_a_plan_that_does_not_lead_to_the_student_is_told() -> None:
    student, teacher, _ = pair()
    _, _, other = pair(ratio=0.25)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(pk.ArgumentError, match=r"Hidden states of student and teacher don't match."):
        pk.distill(student, teacher, batches(), plan=other, weights={"hidden": 1}, steps=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_models_of_the_same_shapes_need_no_cut() -> None:
    student, teacher = net(1), net(0)
    result = pk.distill(student, teacher, batches(), plan=pk.Plan(), weights={"hidden": 1}, epochs=30, lr=1e-2)
    assert result.losses["hidden"][-1] < result.losses["hidden"][0] / 2

"""Experts of models of transformers leave by what they do on data: scores against hooks, targets, folders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import REAPImportance
from prunekit_plugins.integrations.configuration import update_config
from tests.zoo.test_experts import IDS, INPUTS, TINY, logits, tiny

transformers = pytest.importorskip("transformers")

EXPERTS = 8
BATCHES = [
    {"input_ids": torch.randint(3, 90, (4, 24), generator=torch.Generator().manual_seed(seed)), "use_cache": False}
    for seed in range(3)
]


def mixtures(model: nn.Module) -> list[nn.Module]:
    """The modules that are given tokens, the numbers of their experts, and their weights."""
    return [module for path, module in model.named_modules() if path.endswith(".experts")]


def expected(model: nn.Module) -> torch.Tensor:
    """The mean of ``g ||f||`` for each mixture and expert: hooks see the routing, experts run one by one."""
    seen: list[tuple[int, tuple[Any, ...]]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, given, number=number: seen.append((number, given)))
        for number, module in enumerate(mixtures(model))
    ]
    with torch.no_grad():
        for batch in BATCHES:
            model(**batch)
    for handle in handles:
        handle.remove()
    sums = torch.zeros(len(mixtures(model)), EXPERTS, dtype=torch.float64)
    counts = torch.zeros(len(mixtures(model)), EXPERTS)
    with torch.no_grad():
        for number, (tokens, chosen, weights) in seen:
            for expert in range(EXPERTS):
                token, place = (chosen == expert).nonzero(as_tuple=True)
                only = torch.full((len(token), 1), expert)
                alone = (
                    mixtures(model)[number](tokens[token], only, torch.ones(len(token), 1))
                    if len(token)
                    else tokens[:0]
                )
                sums[number, expert] += float((weights[token, place].double() * alone.double().norm(dim=1)).sum())
                counts[number, expert] += len(token)
    if type(model).__name__.startswith("DeepseekV3"):  # the experts at the same place of both groups leave together
        sums, counts = sums.unflatten(1, (2, -1)).sum(1), counts.unflatten(1, (2, -1)).sum(1)
    return sums / counts.clamp(min=1)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_reap_is_what_hooks_on_the_model_say(name: str, implementation: str) -> None:
    model = tiny(name, implementation)
    graph = pk.DependencyGraph().build_dependency(model, INPUTS)
    criterion = REAPImportance(pk.calibrate(model, BATCHES, parts=("contributions",)), relative=False)
    groups = [group.name for group in graph.groups() if group.kind is pk.Kind.EXPERTS]
    scores = [criterion(graph.whole_group(group)) for group in groups]
    found = torch.stack([score for score in scores if score is not None])
    model.config._experts_implementation = "eager"
    assert torch.allclose(found, expected(model), rtol=1e-6, atol=1e-6)


def seldom(name: str) -> Any:
    """A model in which every second expert is sent few tokens, and adds little for them."""
    model = tiny(name, "grouped_mm")
    for path, module in model.named_modules():
        if path.endswith((".gate", ".router")):
            with torch.no_grad():
                module.weight[::2] *= 0.2
                module.weight[1::2] *= 0.8
                if hasattr(module, "bias"):
                    module.bias.zero_()
                if hasattr(module, "e_score_correction_bias"):
                    module.e_score_correction_bias.zero_()
                    module.e_score_correction_bias[::2] -= 0.1  # with more no token reaches them
        if path.endswith(".experts"):
            with torch.no_grad():
                module.down_proj[::2] *= 0.1
    return model


LEFT = dict.fromkeys(TINY, 0.7) | {"DeepseekV3": 0.5}
"""What is to be left; of DeepSeek-V3 attention is large, and ranks of it do less harm than pairs of experts."""


@pytest.mark.parametrize("name", TINY)
def test_a_target_takes_experts_and_what_is_left_generates(name: str) -> None:
    model = seldom(name)
    result = pk.prune(model, INPUTS, target={"params": LEFT[name]}, calibration=BATCHES)
    groups = [name for name, group in result.graph.analysis.groups.items() if group.kind is pk.Kind.EXPERTS]
    taken = {group: sizes for group, sizes in result.report.pruned.items() if group.endswith("#experts")}
    assert taken, result.report.pruned
    uneven = any(note.startswith("layers keep different numbers of experts") for note in result.report.notes)
    assert uneven == (len({result.report.pruned.get(group, (8, 8))[1] for group in groups}) > 1)
    assert result.preview.params_after <= LEFT[name] * result.preview.params_before
    assert sum(parameter.numel() for parameter in model.parameters()) == result.preview.params_after
    assert result.protocol.arguments["allocation"] == "estimated"
    assert model.generate(IDS[:, :4], max_new_tokens=3, do_sample=False).shape == (2, 7)


@pytest.mark.parametrize("name", TINY)
def test_a_target_takes_multiples_where_grouped_products_take_no_others(name: str) -> None:
    model = tiny(name, "grouped_mm")
    before = sum(parameter.numel() for parameter in model.parameters())
    result = pk.prune(model, INPUTS, target={"params": 0.7})
    assert 0.6 * before < sum(parameter.numel() for parameter in model.parameters()) <= 0.7 * before
    assert result.report.pruned["model.embed_tokens#stream"][1] % 4 == 0  # of 16 bytes
    told = [note for note in result.report.notes if "are multiples of 4" in note]
    assert "aten::_grouped_mm" in told[0]
    assert told[0].endswith(" takes no other ones")
    assert model.generate(IDS[:, :4], max_new_tokens=3, do_sample=False).shape == (2, 7)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_layers_of_one_size_lose_the_experts_that_are_asked_for(ratio: float) -> None:
    """Their widths take the multiples that the kernel wants; they aren't in step with the experts by chance."""
    model = seldom("Qwen3Moe")
    arguments = {"target": {"params": 0.6}, "expert_pruning_ratio": ratio, "calibration": BATCHES, "uniform": True}
    result = pk.prune(model, INPUTS, **arguments)  # type: ignore[arg-type]
    sizes = {sizes for group, sizes in result.report.pruned.items() if group.endswith("#experts")}
    assert sizes == {(8, round(8 * (1 - ratio)))}
    assert result.preview.params_after <= 0.6 * result.preview.params_before


@pytest.mark.parametrize("name", TINY)
def test_with_one_number_for_all_layers_a_stock_model_loads_the_folder(name: str, tmp_path: Any) -> None:
    model = seldom(name)
    asked: dict[str, Any] = {"target": {"params": LEFT[name]}}
    if name == "DeepseekV3":  # one number says the widths of its experts and of its shared ones
        asked = {"ratio": 0.0, "expert_pruning_ratio": 0.5}
    result = pk.prune(model, INPUTS, calibration=BATCHES, uniform=True, **asked)
    taken = {sizes for group, sizes in result.report.pruned.items() if group.endswith("#experts")}
    assert len(taken) == 1
    update = update_config(model, result.plan, INPUTS)
    assert update.complete, update
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    assert again.generate(IDS[:, :4], max_new_tokens=3, do_sample=False).shape == (2, 7)

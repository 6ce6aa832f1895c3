"""One size of each torchvision classification family: one call, no hints, proven exact."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
import torchvision
from torch import nn

import prunekit as pk
from prunekit_plugins.importance import RandomImportance


@attrs.frozen
class Case:
    """A model and what is expected of it.

    Attributes:
        name: Name in torchvision.
        size: Height and width of the example picture; small, where the model allows it.
        params: Largest fraction of the parameters that may be left at ratio 0.5.
        reason: Why that is more than a third.
        alone: Whether every group can be pruned by itself.
    """

    name: str
    size: int = 64
    params: float = 0.34
    reason: str = ""
    alone: bool = True


CASES = [
    Case("resnet18"),
    Case("resnet50"),
    Case("resnet101"),
    Case("vgg16_bn"),
    Case("alexnet"),
    Case("squeezenet1_1", params=0.37, reason="the 1000-way classifier is a convolution with a pinned output"),
    Case("densenet121"),
    Case("googlenet", size=96),
    Case("inception_v3", size=299),  # the auxiliary head needs this much to run in train mode
    Case("mobilenet_v2", params=0.36, reason="the 1000-way classifier is a third of the model"),
    Case("mobilenet_v3_small", params=0.37, reason="the 1000-way classifier is a third of the model"),
    Case("efficientnet_b0"),
    Case("efficientnet_v2_s"),
    Case("regnet_y_400mf"),
    Case("resnext50_32x4d"),
    Case("shufflenet_v2_x1_0", params=0.55, reason="repeated shuffles of odd sizes pin the trunk; branches shrink"),
    Case("mnasnet1_0"),
    Case("convnext_tiny"),
    Case("vit_b_16", size=224),
    Case("swin_t", alone=False, reason="C // num_heads ties widths to head dims"),
    Case("swin_v2_t", alone=False, reason="C // num_heads ties widths to head dims"),
    Case("maxvit_t", size=224),
]


def build(case: Case) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    options = {"init_weights": False} if case.name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(case.name, weights=None, **options).eval()
    return model, torch.randn(2, 3, case.size, case.size)


def logits(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_of_everything_goes_and_it_is_the_same_program(case: Case) -> None:
    model, x = build(case)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert not any("real tensors" in note for note in result.report.notes)  # none of them depends on values
    assert result.preview.params_after <= case.params * result.preview.params_before
    assert result.preview.params_after == sum(p.numel() for p in model.parameters())
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-5, str(check)
    model.train()
    output = logits(model(x))
    assert output.shape == (2, 1000)
    output.sum().backward()
    assert all(
        p.grad is not None and p.grad.shape == p.shape for n, p in model.named_parameters() if "aux" not in n.lower()
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in ("resnet101", "vgg16_bn")], ids=lambda c: c.name)
def test_single_groups_are_exact_in_double_precision(case: Case) -> None:
    model, x = build(case)
    model, x = model.double(), x.double()
    graph = pk.DependencyGraph().build_dependency(model, x, modes=(False,))
    names = [group.name for group in graph.groups()]
    generator = torch.Generator().manual_seed(len(names))
    chosen = [names[k] for k in torch.randperm(len(names), generator=generator)[:2].tolist()]
    pruned = copy.deepcopy(model)
    fresh = pk.DependencyGraph().build_dependency(pruned, x, modes=(False,))
    for name in chosen:
        size = fresh.analysis.groups[name].size
        units = torch.randperm(size, generator=generator)[: max(1, size // 3)].tolist()
        try:
            fresh.remove({name: units})
        except pk.RehearsalError:
            assert not case.alone, name
    check = pk.check_exact(model, pruned, fresh.applied, x)
    assert check.error < 1e-10, str(check)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_shrink_too_and_are_exact_in_train_mode(name: str) -> None:
    model, _ = build(Case(name))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(2, 3, 299, 299)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert any("aux" in group.lower() for group in result.report.pruned)
    check = pk.check_exact(original, model, result.plan, x, training=True)
    assert check.outputs == (3 if name == "googlenet" else 2)
    assert check.error < 1e-4  # batch statistics over two samples amplify rounding


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_the_check_fails_when_one_index_is_shifted(name: str) -> None:
    model, x = build(Case(name, size=224 if name == "vit_b_16" else 64))
    original = copy.deepcopy(model)
    plan = pk.prune(model, x, importance=RandomImportance()).plan
    assert pk.check_exact(original, model, plan, x)
    cut = next(c for c in plan.parameters if c.parameter.endswith("weight") and len(c.shape) > 1)
    dim, positions = next(iter(plan.positions(cut).items()))
    gone = next(k for k in range(cut.shape[dim]) if k not in positions.tolist())
    others = {d: p for d, p in plan.positions(cut).items() if d != dim}
    wrong = original.get_parameter(cut.parameter).data.select(dim, gone)
    for d, p in others.items():
        wrong = wrong.index_select(d - (d > dim), p)
    model.get_parameter(cut.parameter).data.select(dim, 0).copy_(wrong)
    assert not pk.check_exact(original, model, plan, x)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detectors_lose_half_of_everything_and_are_exact(name: str) -> None:
    torch.manual_seed(0)
    options = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 96}
    build = getattr(torchvision.models.detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=7, **options).eval()
    x = ([torch.rand(3, 96, 96)],)
    original = copy.deepcopy(model)
    result = pk.prune(model, x, importance=RandomImportance())
    assert not result.report.not_understood
    assert result.preview.params_after <= 0.34 * result.preview.params_before
    check = pk.check_exact(original, model, result.plan, x)
    assert check.error < 1e-5, str(check)
    assert check.decisions > 10
    model.train()
    picture = torch.rand(3, 96, 96)
    target = {"boxes": torch.tensor([[10.0, 20.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    sum(model([picture, picture], [target, target]).values()).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)

"""Programs with training in them, criteria and pruners of a user's own, and saving: only the import is changed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
import prunekit_plugins.compat.torch_pruning as tp
from tests.compat.models import VisionTransformer
from tests.compat.test_programs import PICTURE, resnet, torchvision
from tests.models import Chain, Residual

# -- training


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(count)
    ]


def test_taylor_with_a_backward_pass() -> None:
    torch.manual_seed(0)
    model = Residual()
    original = copy.deepcopy(model)
    (x, y), *_ = batches()
    pruner = tp.pruner.MagnitudePruner(
        model, x, tp.importance.TaylorImportance(group_reduction="first", normalizer=None), ignored_layers=[model.fc]
    )
    assert isinstance(pruner.importance, tp.importance.GroupTaylorImportance)
    with pytest.raises(pk.PrunekitError, match="gradient"):
        pruner.step()
    pruner.reset()
    F.cross_entropy(model(x), y).backward()
    product = (model.conv2.weight * model.conv2.weight.grad).abs().flatten(1).sum(1)
    best = sorted(product.argsort(descending=True)[:6].tolist())
    pruner.step()
    assert torch.equal(model.conv2.weight, original.conv2.weight[best][:, pruner.graph.remaining("conv1#stream"), :, :])


def test_hessian_one_sample_at_a_time() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    (x, y), *_ = batches()
    importance = tp.importance.HessianImportance(group_reduction="first", normalizer=None)
    pruner = tp.pruner.MagnitudePruner(model, x, importance, ignored_layers=[model.fc])
    importance.zero_grad()
    squares = torch.zeros_like(model.conv2.weight)
    for loss in F.cross_entropy(model(x), y, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)
        squares += model.conv2.weight.grad**2 / len(x)
    group = pruner.DG.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(12)))
    assert torch.allclose(importance(group), (model.conv2.weight**2 * squares).flatten(1).sum(1))


def test_sparse_training_with_group_norms() -> None:
    torch.manual_seed(0)
    model = Residual()
    pruner = tp.pruner.GroupNormPruner(
        model, batches()[0][0], tp.importance.GroupMagnitudeImportance(), 0.5, 4, True, 0.5, ignored_layers=[model.fc]
    )
    assert isinstance(pruner, tp.pruner.BasePruner)
    assert (pruner.global_pruning, pruner.pruning_ratio) == (True, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def spread() -> float:
        norms = model.conv2.weight.detach().flatten(1).norm(dim=1)
        return float(norms.max() / norms.min())

    before = spread()
    for _ in range(3):
        pruner.update_regularizer()
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            pruner.regularize(model)
            optimizer.step()
    assert spread() > 2 * before
    pruner.step()
    assert model(batches()[0][0]).shape == (8, 5)


def test_the_range_of_group_norms_is_a_factor_in_the_call() -> None:
    shrunk = []
    for alpha in (None, 16, 4):
        torch.manual_seed(0)
        model = Chain(4, 8, 3)
        pruner = tp.pruner.GroupNormPruner(model, torch.randn(2, 4), tp.importance.MagnitudeImportance(), reg=1.0)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.regularize(model) if alpha is None else pruner.regularize(model, alpha=alpha)
        ratio = (model.layers[0].weight.grad / model.layers[0].weight).detach()
        shrunk.append(ratio.max().item() / ratio.min().item())
    assert shrunk == pytest.approx([16, 16, 4], rel=1e-5)
    with pytest.raises(pk.ArgumentError, match="at least 1"):
        pruner.regularize(model, alpha=0.5)


def test_growing_regularization() -> None:
    torch.manual_seed(0)
    model = Chain(4, 8, 3)
    pruner = tp.pruner.GrowingRegPruner(model, torch.randn(2, 4), tp.importance.MagnitudeImportance(), 1e-3, 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert {name: tuple(values.shape) for name, values in pruner.group_reg.items()} == {"layers.0": (8,)}
    pruner.update_reg()
    pruner.regularize(model)
    factors = (model.layers[0].weight.grad / model.layers[0].weight).detach().mean(1)
    assert factors.min().item() == pytest.approx(1e-3, rel=1e-4)
    assert factors.max().item() == pytest.approx(1.1e-2, rel=1e-4)
    pruner.step()
    pruner.update_regularizer()
    model.zero_grad()
    model(torch.randn(2, 4)).sum().backward()
    before = model.layers[0].weight.grad.clone()
    pruner.regularize(model)
    assert torch.allclose(model.layers[0].weight.grad - before, 1e-3 * model.layers[0].weight, atol=1e-6)


def test_slimming() -> None:
    torch.manual_seed(0)
    model, (x, y) = Residual(), batches()[0]
    pruner = tp.pruner.BNScalePruner(model, x, tp.importance.BNScaleImportance(), reg=0.25, ignored_layers=[model.fc])
    model.bn2.weight.data.uniform_(-1, 1)
    F.cross_entropy(model(x), y).backward()
    before = model.bn2.weight.grad.clone()
    pruner.regularize(model)
    assert torch.allclose(model.bn2.weight.grad - before, 0.25 * model.bn2.weight.sign())
    best = model.bn2.weight.detach().abs().argsort(descending=True)[:6]
    pruner.step()
    assert pruner.graph.remaining("conv2") == tuple(sorted(best.tolist()))


def test_depthwise_convolutions_do_not_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1))
    x = torch.randn(2, 3, 8, 8)
    graph = tp.DependencyGraph().build_dependency(model, x)
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(4)))
    model(x).square().sum().backward()
    options = {"group_reduction": "sum", "normalizer": None}
    hessian = tp.importance.HessianImportance(**options)
    hessian.accumulate_grad(model)
    rows, columns = model[0].weight, model[2].weight
    for importance, value in (
        (tp.importance.MagnitudeImportance(p=1, **options), lambda w: w.abs()),
        (tp.importance.TaylorImportance(**options), lambda w: (w * w.grad).abs()),
        (hessian, lambda w: (w * w.grad) ** 2),
    ):
        wanted = value(rows).sum((1, 2, 3)) + value(columns).sum((0, 2, 3))
        assert torch.allclose(importance(group), wanted)
    distances = torch.cdist(rows.flatten(1), rows.flatten(1)).sum(1)
    columns = columns.transpose(0, 1).flatten(1)
    distances = distances + torch.cdist(columns, columns).sum(1)
    assert torch.allclose(tp.importance.FPGMImportance(**options)(group), distances)


class Slimming(tp.importance.Importance):
    """A criterion as users write it: over the layers of a group."""

    def __call__(self, group: tp.Group, **kwargs: object) -> torch.Tensor | None:
        scores = []
        for dep, idxs in group:
            if isinstance(dep.target.module, nn.BatchNorm2d) and dep.handler == tp.prune_batchnorm_out_channels:
                scores.append(dep.layer.weight.detach().abs()[idxs])
        return torch.stack(scores).mean(0) if scores else None


class SlimmingPruner(tp.pruner.MetaPruner):
    """A pruner as users write it."""

    def regularize(self, model: nn.Module, reg: float) -> None:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.grad.data.add_(reg * torch.sign(m.weight.data))


def test_a_criterion_and_a_pruner_of_ones_own() -> None:
    torch.manual_seed(0)
    model, (x, y) = Residual(), batches()[0]
    for norm in (model.bn1, model.bn2, model.bn3):
        nn.init.uniform_(norm.weight)
    both = (model.bn1.weight + model.bn3.weight).detach()
    pruner = SlimmingPruner(model, x, importance=Slimming(), pruning_ratio=0.25)
    F.cross_entropy(model(x), y).backward()
    before = model.bn1.weight.grad.clone()
    pruner.regularize(model, reg=1.0)
    assert torch.allclose(model.bn1.weight.grad - before, torch.ones(8))
    pruner.step()
    assert pruner.graph.remaining("conv1#stream") == tuple(sorted(both.argsort(descending=True)[:6].tolist()))


def test_scores_per_channel_of_heads_are_joined() -> None:
    class Rows(tp.importance.Importance):
        def __call__(self, group: tp.Group) -> torch.Tensor:
            dep, idxs = group[0]
            return dep.layer.weight.detach().abs().flatten(1).sum(1)[idxs]

    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(2, 3, 16, 16)
    qkv = model.blocks[0].attn.qkv.weight.detach().clone()
    pruner = tp.pruner.MetaPruner(
        model, x, Rows(), ignored_layers=[model.patches, model.blocks[0].fc1, model.blocks[1]]
    )
    pruner.step()
    rows = qkv.abs().sum(1).view(12, 8).sum(0)
    wanted = tuple(sorted(rows.argsort(descending=True)[:4].tolist()))
    assert pruner.graph.remaining("blocks.0.attn.qkv#head_dim") == wanted
    group = pruner.DG.whole_group("blocks.0.attn.qkv#heads")
    assert group[0].root_idxs == list(range(48))


def test_pruning_one_layer_to_a_width() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    pruner = tp.pruner.MagnitudePruner(model, x, tp.importance.MagnitudeImportance(p=1), ignored_layers=[model.fc])
    scores = pruner.importance(pruner.DG.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(12))))
    weight = model.conv2.weight.detach().clone()
    pruner.manual_prune_width(model.conv2, tp.prune_conv_out_channels, 0.25)
    assert torch.equal(model.conv2.weight, weight[sorted(scores.argsort()[3:].tolist())])
    pruner.manual_prune_width(model.conv2, tp.prune_conv_out_channels, [0, 8])
    assert model.conv2.out_channels == model.bn2.num_features == model.conv3.in_channels == 7
    with pytest.raises(pk.ArgumentError, match=r"\[0, 1\)"):
        pruner.manual_prune_width(model.conv2, tp.prune_conv_out_channels, 1.5)


def test_former_argument_names() -> None:
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    with pytest.warns(DeprecationWarning, match="ch_sparsity was renamed"):
        pruner = tp.pruner.MagnitudePruner(model, x, tp.importance.MagnitudeImportance(), ch_sparsity=0.75)
    pruner.step()
    assert (model.conv1.out_channels, model.conv2.out_channels) == (2, 3)


# -- saving


def test_saving_and_loading(tmp_path: Path) -> None:
    model = resnet()
    pruner = tp.pruner.MagnitudePruner(model, PICTURE, tp.importance.MagnitudeImportance(), ignored_layers=[model.fc])
    pruner.step()
    torch.save(tp.state_dict(model), tmp_path / "state.pth")
    fresh = torchvision.models.resnet18(num_classes=10).eval()
    assert tp.load_state_dict(fresh, state_dict=torch.load(tmp_path / "state.pth", weights_only=True)) is fresh
    assert torch.equal(fresh(PICTURE), model(PICTURE))
    assert fresh.layer1[0].conv1.out_channels == 32
    torch.save({"model": model.state_dict(), "pruning": pruner.pruning_history()}, tmp_path / "history.pth")
    stored = torch.load(tmp_path / "history.pth", weights_only=False)
    fresh = torchvision.models.resnet18(num_classes=10).eval()
    graph = tp.DependencyGraph().build_dependency(fresh, PICTURE)
    graph.load_pruning_history(stored["pruning"])
    fresh.load_state_dict(stored["model"])
    assert torch.equal(fresh(PICTURE), model(PICTURE))
    tp.save(model, tmp_path / "model.pth")
    assert torch.equal(tp.load(tmp_path / "model.pth", weights_only=False)(PICTURE), model(PICTURE))

"""OBD-C scores against Kronecker factors that are formed here as matrices, and against the exact Fisher matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import GroupTaylorImportance, OBDCImportance
from prunekit_plugins.layers import PrunableMultiheadAttention, prune_conv_in_channels, prune_conv_out_channels
from tests.plugins.test_importance import (
    NORMALIZERS,
    PICTURE,
    Chain,
    Grouped,
    Joined,
    Plain,
    Residual,
    graph_of,
    random_weights,
    same,
    the_group,
)
from tests.plugins.test_importance_activation import Uncalled

raw: dict[str, Any] = {"normalizer": None}
ALL = [nn.modules.conv._ConvNd, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.RMSNorm]


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    return (outputs.flatten(1).tanh() ** 2).sum(1).mean()


def gather(model: nn.Module, batches: list[torch.Tensor], **options: Any) -> OBDCImportance:
    criterion = OBDCImportance(**options)
    criterion.prepare_model(model)
    for inputs in batches:
        loss_of(model(inputs)).backward()
        criterion.step()
    criterion.rm_hooks(model)
    return criterion


def no_hooks(model: nn.Module) -> bool:
    return all(not m._forward_pre_hooks and not m._forward_hooks and not m._backward_hooks for m in model.modules())


def sample_gradients(model: nn.Module, layer: str, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the samples one by one; returns a layer's inputs and the gradients of its outputs, ``[samples, ...]``."""
    read, gradients = [], []
    module = model.get_submodule(layer)
    for sample in inputs.split(1):
        seen: list[torch.Tensor] = []
        zeros: list[torch.Tensor] = []

        def add(m: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            seen.append(args[0].detach())  # noqa: B023
            zeros.append(torch.zeros_like(output, requires_grad=True))  # noqa: B023
            return output + zeros[-1]  # noqa: B023

        handle = module.register_forward_hook(add)
        (found,) = torch.autograd.grad(loss_of(model(sample)), zeros)
        handle.remove()
        read.append(seen[0])
        gradients.append(found)
    return torch.cat(read), torch.cat(gradients)


def linear_scores(model: nn.Module, layer: str, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``T/2 S_cc w_c^T A w_c`` of rows and ``T/2 A_cc w_c^T S w_c`` of columns, with ``A`` and ``S`` formed."""
    a, g = sample_gradients(model, layer, inputs)
    tokens = a[0].numel() // a.shape[-1]
    a, g = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
    big_a, big_s = a.T @ a / len(a), g.T @ g / len(g)
    w = model.get_parameter(f"{layer}.weight").detach()
    rows = torch.stack([big_s[c, c] * (w[c] @ big_a @ w[c]) for c in range(len(w))])
    columns = torch.stack([big_a[c, c] * (w[:, c] @ big_s @ w[:, c]) for c in range(w.shape[1])])
    return rows * tokens / 2, columns * tokens / 2


@pytest.mark.parametrize("shape", [(6, 3), (6, 5, 3), (6, 2, 5, 3)], ids=str)
def test_linear_layers_with_biases_and_tokens(shape: tuple[int, ...]) -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)))
    x = batch(*shape)
    rows, _ = linear_scores(model, "layers.0", x)
    _, columns = linear_scores(model, "layers.2", x)
    criterion = gather(model, [x], group_reduction=None)
    same(criterion(the_group(model, x)), torch.stack([rows, columns]))


def test_one_sample_is_exact() -> None:
    """With one sample and no sharing the curvature is ``g g^T``: half of the squared first-order change."""
    model = random_weights(Chain(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    x = batch(1, 3)
    criterion = gather(model, [x], group_reduction=None, bias=True)
    taylor = GroupTaylorImportance(group_reduction=None, multivariable=True, bias=True)
    for group in graph_of(model, x).get_all_groups():
        first = taylor(group)
        assert first is not None
        assert first.shape[0] == 3
        same(criterion(group), first.square() / 2)


def test_batches_weigh_by_their_samples() -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)))
    x = batch(7, 3)
    expected = gather(model, [x], **raw)(the_group(model, x))
    assert expected is not None
    same(gather(model, [x[:1], x[1:5], x[5:]], **raw)(the_group(model, x)), expected)
    last = gather(model, [x[5:]], **raw)(the_group(model, x))
    assert last is not None
    assert not torch.allclose(last, expected)


def conv_rows(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """``T/2 S_cc w_c^T A w_c`` with ``A`` over unfolded patches, in each group of the convolution."""
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    a, g = sample_gradients(model, layer, inputs)
    places = g[0, 0].numel()
    g = g.transpose(0, 1).flatten(1)
    scores = []
    for part, (chunk, w) in enumerate(
        zip(a.chunk(conv.groups, 1), conv.weight.detach().chunk(conv.groups), strict=True)
    ):
        patches = F.unfold(chunk, conv.kernel_size, padding=conv.padding).transpose(0, 1).flatten(1)
        big_a = patches @ patches.T / patches.shape[1]
        for c, row in enumerate(w.flatten(1)):
            s = (g[part * len(w) + c] ** 2).mean()
            scores.append(s * (row @ big_a @ row))
    return torch.stack(scores) * places / 2


def conv_columns(model: nn.Module, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    """``T/2 E[a_c^2] E[(dL/da_c)^2]``, the gradient through this layer alone, by the transposed convolution."""
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    a, g = sample_gradients(model, layer, inputs)
    back = F.conv_transpose2d(g, conv.weight.detach(), padding=conv.padding, groups=conv.groups)
    places = a[0, 0].numel()
    return (a**2).mean((0, 2, 3)) * (back**2).mean((0, 2, 3)) * places / 2


def test_convolutions() -> None:
    model = random_weights(Plain()).eval()
    x = batch(4, 3, 7, 7)
    expected = torch.stack([conv_rows(model, "first", x), conv_columns(model, "last", x)])
    same(gather(model, [x], group_reduction=None)(the_group(model)), expected)


def test_a_kernel_that_covers_all_is_a_linear_layer() -> None:
    x = batch(4, 3, 5, 5)
    model = random_weights(Chain(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.Conv2d(6, 4, 1)))
    flat = Chain(nn.Flatten(), nn.Linear(75, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    for mine, theirs in ((0, 1), (2, 3)):
        conv, linear = model.get_submodule(f"layers.{mine}"), flat.get_submodule(f"layers.{theirs}")
        linear.weight.data = conv.weight.data.flatten(1)
        linear.bias.data = conv.bias.data
    expected = gather(flat, [x], **raw)(the_group(flat, x))
    assert expected is not None
    same(gather(model, [x], **raw)(the_group(model, x)), expected)


def test_grouped_and_depthwise_convolution() -> None:
    x = batch(3, 3, 7, 7)
    model = random_weights(Grouped())
    criterion = gather(model, [x], **raw)
    first, rows = conv_rows(model, "first", x), conv_rows(model, "middle", x)
    columns, last = conv_columns(model, "middle", x), conv_columns(model, "last", x)
    same(criterion(the_group(model, size=4)), (first[:4] + first[4:] + columns[:4] + columns[4:]) / 2)
    same(criterion(the_group(model, size=3)), (rows[:3] + rows[3:] + last[:3] + last[3:]) / 2)

    model = random_weights(Chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)))
    members = [conv_rows(model, "layers.0", x), conv_rows(model, "layers.1", x), conv_columns(model, "layers.2", x)]
    same(gather(model, [x], **raw)(the_group(model)), torch.stack(members).mean(0))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_is_the_convolution_of_stuffed_inputs(groups: int) -> None:
    """Rows: a transposed convolution of stride 1 is a convolution with the flipped kernel on padded inputs."""
    x = batch(3, 4, 5, 5)
    model = random_weights(Chain(nn.ConvTranspose2d(4, 6, 3, groups=groups), nn.Tanh(), nn.ConvTranspose2d(6, 4, 3)))
    plain = Chain(nn.Conv2d(4, 6, 3, padding=2, groups=groups), nn.Tanh(), nn.Conv2d(6, 4, 3, padding=2)).double()
    for place, parts in ((0, groups), (2, 1)):
        ours, theirs = model.get_submodule(f"layers.{place}"), plain.get_submodule(f"layers.{place}")
        pieces = [piece.transpose(0, 1).flip((2, 3)) for piece in ours.weight.data.chunk(parts)]
        theirs.weight.data, theirs.bias.data = torch.cat(pieces), ours.bias.data
    assert torch.allclose(model(x), plain(x))
    rows, columns = conv_rows(plain, "layers.0", x), conv_columns(plain, "layers.2", x)
    if groups == 2:
        rows, columns = rows[:3] + rows[3:], columns[:3] + columns[3:]
    size = 6 // groups
    criterion = gather(model, [x], group_reduction=None)
    same(criterion(the_group(model, x, size=size)), torch.stack([rows, columns]))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(6), nn.GroupNorm(1, 6), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm([6, 5, 5])],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_over_pictures(norm: nn.Module) -> None:
    model = random_weights(Chain(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 4, 1))).eval()
    x = batch(4, 3, 7, 7)
    read, g = sample_gradients(model, "layers.1", x)
    norm = model.get_submodule("layers.1")
    z = norm(read).detach()
    if isinstance(norm, nn.LayerNorm):  # one weight per channel and place
        z = z - norm.bias.detach()
        norm_scores = ((z**2).mean(0) * (g**2).mean(0)).sum((1, 2)) / 2
    else:
        z = z - norm.bias.detach()[:, None, None]
        norm_scores = (z**2).mean((0, 2, 3)) * (g**2).mean((0, 2, 3)) * 25 / 2
    members = torch.stack([conv_rows(model, "layers.0", x), norm_scores, conv_columns(model, "layers.2", x)])
    found = gather(model, [x], group_reduction="sum", target_types=ALL, **raw)(the_group(model, x, kind="layers.0"))
    same(found, members.sum(0))
    without = gather(model, [x], group_reduction=None)(the_group(model, x, kind="layers.0"))
    same(without, members[[0, 2]])


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norms_over_tokens(kind: type[nn.Module]) -> None:
    model = random_weights(Chain(nn.Linear(3, 6), kind(6), nn.Tanh(), nn.Linear(6, 4)))
    x = batch(4, 5, 3)
    read, g = sample_gradients(model, "layers.1", x)
    norm = model.get_submodule("layers.1")
    z = norm(read).detach() - (norm.bias.detach() if isinstance(norm, nn.LayerNorm) else 0)
    expected = (z**2).mean((0, 1)) * (g**2).mean((0, 1)) * 5 / 2
    same(gather(model, [x], target_types=[kind], **raw)(the_group(model, x)), expected)


def test_norms_without_weights_are_skipped() -> None:
    norms = [nn.BatchNorm2d(6, affine=False), nn.InstanceNorm2d(6)]
    model = random_weights(Chain(nn.Conv2d(3, 6, 3), *norms, nn.Conv2d(6, 4, 1))).eval()
    x = batch(4, 3, 7, 7)
    expected = torch.stack([conv_rows(model, "layers.0", x), conv_columns(model, "layers.3", x)])
    same(gather(model, [x], group_reduction=None, target_types=ALL, bias=False)(the_group(model, x)), expected)


def test_biases_are_members() -> None:
    model = random_weights(Plain()).eval()
    x = batch(4, 3, 7, 7)
    _, g = sample_gradients(model, "first", x)
    bias = model.get_parameter("first.bias").detach() ** 2 * (g**2).mean((0, 2, 3)) * 25 / 2
    expected = torch.stack([conv_rows(model, "first", x), conv_columns(model, "last", x), bias])
    same(gather(model, [x], bias=True, **raw)(the_group(model)), expected.mean(0))


def test_a_layer_that_runs_twice() -> None:
    """Its two calls are two positions that share the weight."""
    model = random_weights(Residual())
    assert isinstance(model, Residual)
    x = batch(5, 3)
    scores = gather(model, [x], group_reduction=None)(the_group(model, x))
    zeros = torch.zeros(2, 5, 6, dtype=torch.float64, requires_grad=True)
    read = [model.stem(x)]
    for call in range(2):
        read.append(read[-1] + (model.inner(read[-1]) + zeros[call]).relu())
    (g,) = torch.autograd.grad(loss_of(model.head(read[-1])) * 5, zeros)
    a, g = torch.cat(read[:2]).detach(), g.flatten(0, 1)
    big_a, big_s = a.T @ a / 10, g.T @ g / 10
    w = model.inner.weight.detach()
    rows = torch.stack([big_s[c, c] * (w[c] @ big_a @ w[c]) for c in range(6)])
    columns = torch.stack([big_a[c, c] * (w[:, c] @ big_s @ w[:, c]) for c in range(6)])
    assert scores is not None
    same(scores[1:3], torch.stack([rows, columns]))


def test_flatten_and_concat_add_up() -> None:
    x = batch(4, 3, 7, 7)
    model = random_weights(Chain(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(245, 4)))
    _, columns = linear_scores(model, "layers.2", x)
    expected = torch.stack([conv_rows(model, "layers.0", x), columns.reshape(5, 49).sum(1)])
    same(gather(model, [x], group_reduction=None)(the_group(model)), expected)

    joined = random_weights(Joined())
    columns = conv_columns(joined, "last", x)
    expected = torch.stack([conv_rows(joined, "left", x), columns[:4] + columns[8:]])
    same(gather(joined, [x], group_reduction=None)(the_group(joined, kind="left")), expected)


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6]], ids=str)
def test_some_units_in_the_order_asked_for(chosen: list[int]) -> None:
    model = random_weights(Plain()).eval()
    criterion = gather(model, [batch(4, 3, 7, 7)], **raw)
    whole = criterion(the_group(model))
    assert whole is not None
    for layer, function in (("first", prune_conv_out_channels), ("last", prune_conv_in_channels)):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, chosen)
        same(criterion(group), whole[chosen])


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: str | None) -> None:
    model = random_weights(Plain()).eval()
    x = batch(4, 3, 7, 7)
    expected = torch.stack([conv_rows(model, "first", x), conv_columns(model, "last", x)]).mean(0)
    same(gather(model, [x], normalizer=normalizer)(the_group(model)), NORMALIZERS[normalizer](expected))


class Attention(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.attention = attention
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return result


@pytest.mark.parametrize("swapped", [False, True])
def test_attention_reads_the_stream_and_writes_it(swapped: bool) -> None:
    attention: nn.Module = nn.MultiheadAttention(8, 2, batch_first=True)
    if swapped:
        assert isinstance(attention, nn.MultiheadAttention)
        attention = PrunableMultiheadAttention(attention)
    model = random_weights(Attention(attention))
    assert isinstance(model, Attention)
    x = batch(4, 5, 3)
    criterion = gather(model, [x], group_reduction=None)
    rows, _ = linear_scores(model, "stem", x)
    # all that comes back to the stem's output comes through the columns of the input projection
    a, g = sample_gradients(model, "stem", x)
    stream = model.stem(a).detach()
    columns = (stream**2).mean((0, 1)) * (g**2).mean((0, 1)) * 5 / 2
    same(criterion(graph_of(model, x).whole_group("stem")), torch.stack([rows, columns]))
    writes = next(group for group in graph_of(model, x).get_all_groups() if "out_proj" in group.name)
    _, head = linear_scores(model, "head", x)
    scores = criterion(writes)
    assert scores is not None
    assert torch.allclose(scores[1], head)
    _, g = sample_gradients(model, "head", x)
    back = g @ model.head.weight.detach()
    z = model.attention(stream, stream, stream)[0].detach() - model.attention.out_proj.bias.detach()
    assert torch.allclose(scores[0], (z**2).mean((0, 1)) * (back**2).mean((0, 1)) * 5 / 2)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_model_computes_the_same_and_gets_the_same_gradients(inplace: bool) -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.Conv2d(6, 4, 1)]
    model = random_weights(Chain(*layers)).eval()
    x = batch(4, 3, 7, 7)
    model(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    criterion = OBDCImportance(target_types=ALL)
    criterion.prepare_model(model)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        grad = expected[name]
        assert parameter.grad is not None
        assert grad is not None
        assert torch.equal(parameter.grad, grad)
    criterion.step()
    assert criterion(the_group(model)) is not None
    criterion.rm_hooks()
    assert no_hooks(model)


def test_frozen_weights_count() -> None:
    model = random_weights(Plain()).eval()
    x = batch(4, 3, 7, 7)
    expected = gather(model, [x])(the_group(model))
    assert expected is not None
    frozen = random_weights(Plain()).eval().requires_grad_(False)
    same(gather(frozen, [x])(the_group(frozen)), expected)


def test_runs_without_gradients_dont_count() -> None:
    model = random_weights(Plain()).eval()
    x = batch(4, 3, 7, 7)
    expected = gather(model, [x])(the_group(model))
    criterion = OBDCImportance()
    criterion.prepare_model(model)
    loss_of(model(x)).backward()
    with torch.no_grad():
        model(9 * x[:2])
    model(7 * x)  # no backward
    criterion.step()
    criterion.rm_hooks()
    assert expected is not None
    same(criterion(the_group(model)), expected)


def test_hooks_are_always_removable() -> None:
    model = random_weights(Plain())
    criterion = OBDCImportance()
    criterion.rm_hooks(model)
    criterion.prepare_model(model)
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 2))
    criterion.prepare_model(model)
    criterion.rm_hooks(model)
    criterion.rm_hooks(model)
    assert no_hooks(model)


def test_as_programs_for_torch_pruning_call_it() -> None:
    model = random_weights(Plain()).eval()
    criterion = OBDCImportance(group_reduction="mean", num_classes=6)
    pruner = pk.BasePruner(model, PICTURE, importance=criterion, pruning_ratio=0.5)
    expected = gather(model, [batch(4, 3, 7, 7)])(the_group(model))
    assert expected is not None
    kept = model.get_parameter("first.weight").detach()[expected.argsort(descending=True)[:5].sort().values]
    model.zero_grad()
    criterion._prepare_model(model, pruner)
    loss_of(model(batch(4, 3, 7, 7))).backward()
    criterion.step()
    pruner.step()
    criterion._rm_hooks(model)
    criterion._clear_buffer()
    assert torch.equal(model.get_parameter("first.weight"), kept)
    assert no_hooks(model)
    with pytest.raises(pk.ArgumentError, match="No curvature was gathered"):
        criterion(the_group(model))


def test_a_weight_that_is_used_without_its_layer_is_not_watched() -> None:
    """The producer still counts."""
    model, x = random_weights(Uncalled()), batch(4, 3)
    rows, _ = linear_scores(model, "middle", x)
    same(gather(model, [x], **raw)(the_group(model, x, size=5)), rows)


def test_what_is_missing_is_told() -> None:
    model = random_weights(Plain())
    criterion = OBDCImportance()
    with pytest.raises(pk.ArgumentError, match="No curvature was gathered") as caught:
        criterion(the_group(model))
    assert caught.value.where == "first.weight, last.weight"
    assert "prepare_model" in caught.value.hint
    criterion.prepare_model(model)
    model(PICTURE)
    with pytest.raises(pk.ArgumentError, match="No gradient has come back"):
        criterion.step()
    criterion.rm_hooks()
    assert OBDCImportance(target_types=[nn.LayerNorm])(the_group(model)) is None


def test_curvature_from_before_pruning_is_refused() -> None:
    model = random_weights(Plain()).eval()
    criterion = OBDCImportance()
    criterion.prepare_model(model)
    loss_of(model(PICTURE)).backward()
    criterion.step()
    graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [1, 3]).prune()
    with pytest.raises(pk.ArgumentError, match="pruned since"):
        criterion(the_group(model))
    loss_of(model(PICTURE)).backward()
    with pytest.raises(pk.ArgumentError, match="pruned since"):
        criterion.step()
    criterion.rm_hooks()


def test_half_precision_is_widened() -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))).bfloat16()
    x = batch(4, 3).bfloat16()
    score = gather(model, [x], **raw)(the_group(model, x))
    assert score is not None
    assert score.dtype is torch.float32
    expected = gather(model.double(), [x.double()], **raw)(the_group(model, x.double()))
    assert expected is not None
    assert torch.allclose(score.double(), expected, rtol=0.1)


@pytest.mark.parametrize("options", [{}, {"bias": True, "target_types": ALL}, {"normalizer": "lamp"}], ids=str)
def test_kit(options: dict[str, Any]) -> None:
    criterion = OBDCImportance(**options)

    def prepare(model: nn.Module, inputs: torch.Tensor) -> None:
        criterion.prepare_model(model.eval())
        loss_of(model(inputs)).backward()
        criterion.step()
        criterion.rm_hooks(model)

    check_criterion(lambda: criterion, prepare=prepare)

"""Activation scores against inputs that are computed here, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.testing import check_criterion
from prunekit_plugins.importance import ActivationImportance
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

raw: dict[str, Any] = {"normalizer": None}


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


BATCHES = [batch(4, 3, 7, 7), batch(1, 3, 7, 7, seed=1), batch(2, 3, 5, 6, seed=2)]


def watch(model: nn.Module, batches: list[torch.Tensor], **options: Any) -> ActivationImportance:
    criterion = ActivationImportance(**options)
    with criterion.compute_importance(model), torch.no_grad():
        for inputs in batches:
            model(inputs)
    return criterion


def mean_size(values: list[torch.Tensor], dim: int = 1) -> torch.Tensor:
    """Mean absolute value per channel over everything, channel by channel."""
    rows = torch.cat([v.detach().movedim(dim, 0).flatten(1) for v in values], 1)
    return torch.tensor([sum(map(abs, row)) / len(row) for row in rows.tolist()], dtype=torch.float64)


def no_hooks(model: nn.Module) -> bool:
    return all(not m._forward_pre_hooks and not m._forward_hooks and not m._backward_hooks for m in model.modules())


def test_all_batches_count() -> None:
    model = random_weights(Plain()).eval()
    assert isinstance(model, Plain)
    inputs = [model.norm(model.first(x)).relu() for x in BATCHES]
    same(watch(model, BATCHES, **raw)(the_group(model)), mean_size(inputs))


def test_not_only_the_last_batch() -> None:
    model = random_weights(Plain()).eval()
    first, last, both = (watch(model, b, **raw)(the_group(model)) for b in (BATCHES[:1], BATCHES[1:2], BATCHES[:2]))
    assert first is not None
    assert last is not None
    assert not torch.allclose(first, last)
    same(both, (4 * first + last) / 5)


def test_a_new_block_starts_anew() -> None:
    model = random_weights(Plain()).eval()
    criterion = watch(model, [9 * BATCHES[0]], **raw)
    with criterion.compute_importance(model):
        model(BATCHES[1])
    expected = watch(model, BATCHES[1:2], **raw)(the_group(model))
    assert expected is not None
    same(criterion(the_group(model)), expected)


def test_hooks_go_also_when_the_body_raises() -> None:
    model = random_weights(Plain())
    criterion = ActivationImportance()

    def interrupted() -> None:
        with criterion.compute_importance(model):
            assert not no_hooks(model)
            model(PICTURE)
            raise RuntimeError("out of batches")

    with pytest.raises(RuntimeError, match="out of batches"):
        interrupted()
    assert no_hooks(model)
    with pytest.raises(RuntimeError), criterion.compute_importance(model):
        model(torch.ones(2, 5))
    assert no_hooks(model)
    with criterion.compute_importance(model):
        model(PICTURE)
    assert no_hooks(model)


@pytest.mark.parametrize("gradients", [False, True])
def test_outputs_and_gradients_are_those_of_the_model(gradients: bool) -> None:
    model = random_weights(Plain()).eval()
    with torch.set_grad_enabled(gradients), ActivationImportance().compute_importance(model):
        watched = model(BATCHES[0])
    assert torch.equal(watched, model(BATCHES[0]))
    assert watched.requires_grad is gradients


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: str | None) -> None:
    model = random_weights(Plain()).eval()
    assert isinstance(model, Plain)
    expected = NORMALIZERS[normalizer](mean_size([model.norm(model.first(BATCHES[0])).relu()]))
    same(watch(model, BATCHES[:1], normalizer=normalizer)(the_group(model)), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod", "first", "gate", None])
def test_consumers_are_joined(reduction: str | None) -> None:
    """The stream is read by ``inner`` (twice in a pass) and by ``head``."""
    model = random_weights(Residual())
    assert isinstance(model, Residual)
    x = batch(5, 3)
    stem = model.stem(x)
    once = stem + model.inner(stem).relu()
    twice = once + model.inner(once).relu()
    inner, head = mean_size([stem, once]), mean_size([twice])
    expected = {
        "mean": (inner + head) / 2,
        "sum": inner + head,
        "max": torch.maximum(inner, head),
        "prod": inner * head,
        "first": inner,
        "gate": head,
        None: torch.stack([inner, head]),
    }
    same(watch(model, [x], group_reduction=reduction, **raw)(the_group(model, x)), expected[reduction])


@pytest.mark.parametrize("chosen", [[2, 6, 9], [9, 2, 6], [6]], ids=str)
def test_some_units_in_the_order_asked_for(chosen: list[int]) -> None:
    model = random_weights(Plain()).eval()
    criterion = watch(model, BATCHES, **raw)
    whole = criterion(the_group(model))
    assert whole is not None
    for layer, function in (("first", prune_conv_out_channels), ("last", prune_conv_in_channels)):
        group = graph_of(model).get_pruning_group(model.get_submodule(layer), function, chosen)
        same(criterion(group), whole[chosen])


def test_flatten_and_concat_add_up() -> None:
    model = random_weights(Chain(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(245, 4)))
    features = model.get_submodule("layers.0")(BATCHES[0])
    expected = mean_size([features.flatten(1)]).reshape(5, 49).sum(1)
    same(watch(model, BATCHES[:1], **raw)(the_group(model)), expected)

    joined = random_weights(Joined())
    assert isinstance(joined, Joined)
    same(watch(joined, BATCHES, **raw)(the_group(joined, kind="left")), 2 * mean_size([*map(joined.left, BATCHES)]))
    same(watch(joined, BATCHES, **raw)(the_group(joined, kind="right")), mean_size([*map(joined.right, BATCHES)]))


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution(transposed: bool) -> None:
    """A position inside the groups is one channel of every group."""
    model = random_weights(Grouped(transposed))
    assert isinstance(model, Grouped)
    criterion = watch(model, BATCHES, **raw)
    middle = [model.first(x) for x in BATCHES]
    same(criterion(the_group(model, size=4)), mean_size(middle).reshape(2, 4).sum(0))
    same(criterion(the_group(model, size=3)), mean_size([model.middle(x) for x in middle]).reshape(2, 3).sum(0))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (2, 4, 5, 3)], ids=str)
def test_linear_layers_of_any_rank(shape: tuple[int, ...]) -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 4)))
    x = batch(*shape)
    hidden = model.get_submodule("layers.1")(model.get_submodule("layers.0")(x)).reshape(-1, 6)
    same(watch(model, [x], **raw)(the_group(model, x)), mean_size([hidden]))


def test_a_convolution_without_a_batch_dim() -> None:
    model = random_weights(Chain(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 1)))
    x = batch(3, 9)
    same(watch(model, [x], **raw)(the_group(model, x)), mean_size([model.get_submodule("layers.0")(x)], 0))


class Attention(nn.Module):
    """A stream that an attention module reads and writes; the head reads its output."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.attention = attention
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.head(self.attention(x, x, value=x)[0])
        return result


def inside(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the output projection reads, from the definition of attention with 2 heads of 4."""
    assert isinstance(model, Attention)
    stem, attention = model.stem(x), model.attention
    q, k, v = nn.functional.linear(stem, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        heads.append((q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1) @ v[..., part])
    return torch.cat(heads, -1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_attention(swapped: bool, training: bool) -> None:
    attention: nn.Module = nn.MultiheadAttention(8, 2, batch_first=True)
    if swapped:
        assert isinstance(attention, nn.MultiheadAttention)
        attention = PrunableMultiheadAttention(attention)
    model = random_weights(Attention(attention)).train(training)
    assert isinstance(model, Attention)
    x = batch(2, 5, 3)
    graph = graph_of(model, x)
    criterion = watch(model, [x, 2 * x], **raw)
    stem = mean_size([model.stem(x), model.stem(2 * x)], 2)
    same(criterion(graph.whole_group("stem")), stem)
    mixed = mean_size([inside(model, x), inside(model, 2 * x)], 2).reshape(2, 4)
    found = {g.size(): criterion(g) for g in graph.get_all_groups() if g.name != "stem" and "heads" not in g.name}
    same(found[4], mixed.sum(0))
    assert model.training is training
    assert no_hooks(model)


def test_random_numbers_are_left_alone() -> None:
    """The inside of an attention module with dropout is looked at without drawing numbers."""
    model = random_weights(Attention(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True))).train()
    x = batch(2, 5, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        with ActivationImportance().compute_importance(model):
            assert torch.equal(model(x), expected)


def test_encoder_layer_is_not_run_past_its_hooks() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = random_weights(Chain(nn.Linear(3, 8), encoder, nn.Linear(8, 4))).eval()
    x = batch(2, 5, 3)
    criterion = watch(model, [x], **raw)
    graph = graph_of(model, x)
    hidden = next(g for g in graph.get_all_groups() if g.size() == 16)
    stem = model.get_submodule("layers.0")(x)
    normed = encoder.norm1(stem + encoder.self_attn(stem, stem, stem)[0])
    same(criterion(hidden), mean_size([encoder.linear1(normed).relu()], 2))
    # the dims of queries and keys are multiplied with each other; no weight consumes them
    unread = [group.name for group in graph.get_all_groups() if criterion(group) is None]
    assert unread == ["layers.1.self_attn.in_proj_weight#head_dim"]


def test_no_batch_is_told() -> None:
    model = random_weights(Plain())
    criterion = ActivationImportance()
    with pytest.raises(pk.ArgumentError, match="No activations were seen") as caught:
        criterion(the_group(model))
    assert caught.value.where == "last.weight"
    assert "compute_importance" in caught.value.hint
    with criterion.compute_importance(model):
        pass
    with pytest.raises(pk.ArgumentError):
        criterion(the_group(model))


def test_activations_from_before_pruning_are_refused() -> None:
    model = random_weights(Plain()).eval()
    criterion = watch(model, BATCHES)
    graph_of(model).get_pruning_group(model.get_submodule("first"), prune_conv_out_channels, [1, 3]).prune()
    with pytest.raises(pk.ArgumentError, match="pruned since") as caught:
        criterion(the_group(model))
    assert caught.value.where == "last.weight"


def test_types_that_count_and_consumers_that_dont_run() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.side = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.stem(x).relu()
            return (self.head(x), self.side(x)) if self.training else self.head(x)

    model = random_weights(Branches()).eval()
    assert isinstance(model, Branches)
    x = batch(4, 3)
    same(watch(model, [x], **raw)(the_group(model, x)), mean_size([model.stem(x).relu()]))
    assert watch(model, [x], target_types=[nn.Conv2d])(the_group(model, x)) is None


class Uncalled(nn.Module):
    """Uses the weight of its last layer without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.stem(x).tanh()).tanh()
        return nn.functional.linear(x, self.head.weight, self.head.bias)


def test_a_weight_that_is_used_without_its_layer_is_not_watched() -> None:
    model, x = random_weights(Uncalled()), batch(4, 3)
    assert isinstance(model, Uncalled)
    criterion = watch(model, [x], **raw)
    assert criterion(the_group(model, x, size=5)) is None
    same(criterion(the_group(model, x, size=6)), mean_size([model.stem(x).tanh()]))


def test_half_precision_is_widened() -> None:
    model = random_weights(Chain(nn.Linear(3, 6), nn.Linear(6, 4))).bfloat16()
    x = batch(4, 3).bfloat16()
    score = watch(model, [x], **raw)(the_group(model, x))
    assert score is not None
    assert score.dtype is torch.float32
    assert torch.allclose(score.double(), mean_size([model.get_submodule("layers.0")(x).double()]), rtol=1e-5)


def test_through_the_pruner() -> None:
    model = random_weights(Plain()).eval()
    criterion = ActivationImportance()
    pruner = pk.BasePruner(model, PICTURE, importance=criterion)
    with criterion.compute_importance(model):
        model(BATCHES[0])
    score = criterion(the_group(model))
    assert score is not None
    kept = model.get_parameter("first.weight").detach()[score.argsort(descending=True)[:5].sort().values]
    pruner.step()
    assert torch.equal(model.get_parameter("first.weight"), kept)


@pytest.mark.parametrize("normalizer", ["mean", "lamp", None])
def test_kit(normalizer: str | None) -> None:
    criterion = ActivationImportance(normalizer=normalizer)

    def prepare(model: nn.Module, inputs: torch.Tensor) -> None:
        with criterion.compute_importance(model.eval()):
            model(inputs)

    check_criterion(lambda: criterion, prepare=prepare)

"""The calibration pass: what is gathered equals what hooks and numpy say; batches of all kinds; bad input is told."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit as pk
from prunekit_plugins.calibration.batches import Batches as Reader
from prunekit_plugins.calibration.moments import Gatherer, merge
from prunekit_plugins.calibration.observation import Run, Seen, Watched
from prunekit_plugins.calibration.symmetric import Symmetric
from prunekit_plugins.importance import CalibratedImportance


class AllKinds(nn.Module):
    """Every way of reading: plain, strided, dilated, grouped, depthwise, transposed, packed, functional, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 3, padding=(1, 2), stride=2, dilation=2)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding="same", dilation=2)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=2, output_padding=1, groups=2, dilation=2)
        self.line = nn.Conv1d(6, 6, 3, padding="same")
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.matrix = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.up(self.depthwise(self.grouped(self.strided(x).relu_()))).relu_().flatten(2)
        x = self.line(x).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = F.linear(x, self.weight, self.bias)
        return x @ self.matrix, torch.addmm(self.bias[:4], x[0], self.matrix), x @ self.weight[:2].t()[:5]


def test_features_times_the_weight_are_the_output() -> None:
    torch.manual_seed(0)
    model = AllKinds().double().eval()
    parameters = dict(model.named_parameters())
    found = {}

    def look(seen: Seen) -> None:
        weight = seen.site.matrix(parameters[seen.site.parameter].detach())
        outputs, biases = [], None
        for chunk in seen.chunks(seen.output):
            outputs.append(chunk.targets - torch.einsum("gof,gnf->gno", weight, chunk.features))
        biases = torch.cat(outputs, 1)
        found[seen.site.name, seen.bias] = (biases - biases[:, :1]).abs().max().item()
        if seen.bias is not None:
            assert torch.allclose(biases[:, 0].flatten(), parameters[seen.bias.parameter].detach()[seen.bias.rows])

    for batch in Reader([torch.randn(3, 3, 10, 9).double()]).read(None):
        Watched(model, pk.default_registry()).run(batch, look)
    assert list(found) == [
        ("strided.weight", Run("strided.bias")),
        ("grouped.weight", Run("grouped.bias")),
        ("depthwise.weight", None),
        ("up.weight", Run("up.bias")),
        ("line.weight", Run("line.bias")),
        ("attention.in_proj_weight[0:6]", Run("attention.in_proj_bias", 0, 6)),
        ("attention.in_proj_weight[6:12]", Run("attention.in_proj_bias", 6, 12)),
        ("attention.in_proj_weight[12:18]", Run("attention.in_proj_bias", 12, 18)),
        ("attention.out_proj.weight", Run("attention.out_proj.bias")),
        ("weight", Run("bias")),
        ("matrix", None),
        ("matrix", Run("bias", 0, 4)),
    ]
    assert max(found.values()) < 1e-12


def test_moments_are_those_of_what_a_hook_sees() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 3))
    batches = [torch.randn(n, 5, 4) + 3 for n in (3, 1, 7)]
    seen: list[torch.Tensor] = []
    handle = model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    values = torch.cat([part.flatten(0, 1) for part in seen]).double().numpy()
    found = pk.calibrate(model, batches, parts=("covariances",)).sites["2.weight"].moments
    assert found.count == 55
    assert np.allclose(found.mean[0], values.mean(0), rtol=1e-6)
    assert found.covariance is not None
    expected = np.cov(values.T, bias=True)
    assert np.abs(found.covariance[0].numpy() - expected).max() < 1e-6 * expected.max()
    assert torch.equal(found.covariance, found.covariance.transpose(1, 2))
    plain = pk.calibrate(model, batches).sites["2.weight"].moments
    assert plain.covariance is None
    assert torch.allclose(plain.variance, found.variance, rtol=1e-5)


@pytest.mark.slow
def test_a_large_mean_costs_no_digits_and_blocks_join() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9000, 1100, generator=generator) * 0.01 + 100
    gatherer = Gatherer(covariance=True)
    gatherer.add(values[None, :100])
    gatherer.add(values[None, 100:])
    found = gatherer.moments()
    assert found is not None
    assert found.covariance is not None
    wide = values.double()
    expected = (wide - wide.mean(0)).T @ (wide - wide.mean(0)) / len(wide)
    assert (found.covariance[0] - expected).abs().max() < 1e-6 * expected.max()


def test_products_go_as_they_become_the_covariance() -> None:
    """A wide layer has no room for both."""
    gatherer = Gatherer(covariance=True)
    with torch.inference_mode():  # as while a model is watched
        gatherer.add(torch.randn(1, 50, 300))
    products = gatherer._products
    assert products is not None
    assert sum(block.numel() for block in products.blocks) < 0.72 * 300 * 300
    found = gatherer.moments()
    assert products.blocks == []
    assert found is not None
    assert found.covariance is not None
    found.covariance.add_(1)  # no inference tensor


@pytest.mark.parametrize(("width", "dtype"), [(300, torch.float64), (600, torch.float32)])
def test_of_a_covariance_that_stays_a_triangle_is_kept(width: int, dtype: torch.dtype) -> None:
    """In the dtype in which products were made; each use has a matrix of its own."""
    torch.manual_seed(0)
    model, x = nn.Linear(width, 2), torch.randn(900, width)
    gatherer = Gatherer(covariance=True)
    gatherer.add(x[None])
    expected = gatherer.moments()
    found = pk.calibrate(model, [x], parts=("covariances", "curvatures")).sites["weight"]
    kept = found.moments._covariance
    assert isinstance(kept, Symmetric)
    assert {block.dtype for block in kept.blocks} == {dtype}
    assert sum(block.numel() for block in kept.blocks) < 0.72 * width**2
    covariance = found.moments.covariance
    assert covariance is not None
    assert expected is not None
    assert covariance.dtype is torch.float64
    torch.testing.assert_close(covariance, expected.covariance, rtol=1e-6, atol=1e-7)
    covariance.zero_()
    assert float(found.moments.covariance.abs().sum()) > 0  # type: ignore[union-attr]
    assert found.curvature is not None
    assert torch.equal(found.curvature.diagonal(dim1=1, dim2=2).double(), found.diagonal)


def test_cross_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 6, generator=generator) + 2, torch.randn(2, 50, 3, generator=generator) - 5
    gatherer = Gatherer(covariance=True)
    gatherer.add(x[:, :20], y[:, :20])
    gatherer.add(x[:, 20:], y[:, 20:])
    found = gatherer.moments()
    assert found is not None
    assert found.cross is not None
    for group in range(2):
        both = np.cov(torch.cat([x[group], y[group]], 1).double().numpy().T, bias=True)
        assert np.allclose(found.cross[group], both[:6, 6:])
        assert found.target_mean is not None
        assert np.allclose(found.target_mean[group], y[group].double().mean(0))


def test_lots_of_samples_are_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 6, generator=generator) + 2, torch.randn(2, 50, 3, generator=generator) - 5
    lots = []
    for part in (slice(0, 13), slice(13, 50), slice(0, 50)):
        gatherer = Gatherer(covariance=True)
        gatherer.add(x[:, part], y[:, part])
        lots.append(gatherer.moments())
    first, second, whole = lots
    assert first is not None
    assert second is not None
    found = merge(first, second)
    for name in ("count", "mean", "variance", "covariance", "target_mean", "target_variance", "cross"):
        assert np.allclose(getattr(found, name), getattr(whole, name)), name


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.down(self.up(self.embed(input_ids)).relu())}


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    model, ids = Tagger(), torch.randint(20, (4, 6))
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 2])[:, None]).long()
    found = pk.calibrate(model, [{"input_ids": ids, "attention_mask": mask}]).sites["up.weight"].moments
    rows = model.embed(ids[mask.bool()]).detach().double()
    assert found.count == 12
    assert torch.allclose(found.mean[0], rows.mean(0))
    added = (1 - mask.float()) * -1e4  # to scores: 0 where a position counts
    for form in (mask.bool(), mask.float(), mask[:, None, None], added, added[:, None, None], added.clamp(min=-100)):
        again = pk.calibrate(model, [{"input_ids": ids, "attention_mask": form}]).sites["up.weight"].moments
        assert again.count == found.count
        assert torch.equal(again.mean, found.mean)
    own = pk.Batches([(ids, mask)], inputs=lambda batch: {"input_ids": batch[0]}, mask=lambda batch: batch[1])
    assert torch.equal(pk.calibrate(model, own).sites["up.weight"].moments.mean, found.mean)


def test_masks_that_fit_nothing_are_told() -> None:
    model, ids = Tagger(), torch.randint(20, (4, 6))
    short = {"input_ids": ids, "attention_mask": torch.ones(4, 3)}
    pairs = {"input_ids": ids, "attention_mask": torch.ones(4, 1, 6, 6)}
    found = pk.calibrate(model, [short, pairs, short])
    assert found.notes == (
        "a mask of shape (4, 3) fits nothing that a layer reads: all positions count (2 batches)",
        "an attention_mask of shape (4, 1, 6, 6) is none of positions: all of them count (1 batch)",
    )
    assert found.sites["up.weight"].moments.count == 3 * 24


def test_batches_of_all_kinds_are_the_same() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)

    def stream() -> Iterator[torch.Tensor]:
        yield from x.split(2)

    kinds: list[Any] = [
        [x],
        list(x.split(2)),
        stream(),
        [(x,)],
        [{"input": x}],
        pk.Batches([(x, "label")], inputs=lambda batch: batch[0]),
        pk.Batches([{"image": x}], forward_fn=lambda model, batch: model(batch["image"])),
        pk.Batches([x, x + 1], limit=1),
    ]
    for kind in kinds:
        found = pk.calibrate(model, kind).sites["0.weight"].moments
        assert torch.allclose(found.mean[0], x.double().mean(0))
        assert torch.allclose(found.variance[0], x.double().var(0, correction=0))


def test_the_model_is_not_touched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    x = torch.randn(5, 4)
    torch.set_rng_state(state)
    loss = lambda outputs, batch: outputs.square().mean()  # noqa: E731
    pk.calibrate(model, [x], parts=("moments", "gradients", "fisher"), loss_fn=loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_are_those_of_backward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    batches = [(torch.randn(n, 4), torch.randn(n, 2)) for n in (3, 5)]
    reader = pk.Batches(batches, inputs=lambda batch: batch[0])

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return F.mse_loss(outputs, batch[1])

    found = pk.calibrate(model, reader, parts=("gradients", "fisher"), loss_fn=loss)
    assert not found.sites
    singles = []
    for x, y in batches:
        for k in range(len(x)):
            model.zero_grad()
            F.mse_loss(model(x[k : k + 1]), y[k : k + 1]).backward()
            singles.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for number, (name, _) in enumerate(model.named_parameters()):
        stack = torch.stack([single[number] for single in singles])
        assert torch.allclose(found.gradients[name], stack.mean(0), atol=1e-6)
        assert torch.allclose(found.fisher[name], stack.square().mean(0), atol=1e-6)


def test_statistics_are_saved_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))
    loss = lambda outputs, batch: outputs.mean()  # noqa: E731
    found = pk.calibrate(model, [torch.randn(2, 2, 7, 7)], parts=("covariances", "gradients"), loss_fn=loss)
    found.save(tmp_path / "s.safetensors")
    again = pk.Statistics.load(tmp_path / "s.safetensors")
    assert (again.examples, again.notes, again.shapes) == (found.examples, found.notes, found.shapes)
    for name, seen in found.sites.items():
        other = again.sites[name]
        assert other.site == seen.site
        assert other.moments.count == seen.moments.count
        assert other.moments.covariance is not None
        assert torch.equal(other.moments.covariance, seen.moments.covariance)
    assert torch.equal(again.gradients["0.weight"], found.gradients["0.weight"])
    again.check(model)
    pk.prune(model, torch.randn(1, 2, 7, 7), ratio=0.5)
    with pytest.raises(pk.ArgumentError, match="statistics are of another model"):
        again.check(model)


@pytest.mark.parametrize("content", [b"", b"junk" * 9, None])
def test_files_that_hold_no_statistics_are_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.safetensors"
    if content is None:
        pk.save(nn.Linear(2, 2), path)
    else:
        path.write_bytes(content)
    with pytest.raises(pk.CheckpointError, match="statistics"):
        pk.Statistics.load(path)


def test_layers_by_name_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert list(pk.calibrate(model, [torch.randn(3, 4)], layers=["1"]).sites) == ["1.0.weight", "1.1.weight"]


def test_progress_is_told() -> None:
    steps: list[tuple[int, int | None]] = []
    x = torch.randn(2, 4)
    pk.calibrate(nn.Linear(4, 2), [x, x], progress=lambda done, total: steps.append((done, total)))
    endless = pk.Batches((x for _ in range(9)), limit=3)
    pk.calibrate(nn.Linear(4, 2), endless, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]


def test_what_is_not_finite_is_left_out_and_told() -> None:
    model, x = nn.Linear(4, 2), torch.randn(6, 4)
    bad = x.clone()
    bad[1, 2], bad[4, 0] = float("nan"), float("inf")
    found = pk.calibrate(model, [bad], parts=("covariances",))
    assert torch.allclose(found.sites["weight"].moments.mean[0], x[[0, 2, 3, 5]].double().mean(0))
    assert found.notes == (
        "weight: 2 of 6 samples not finite",
        "weight: 4 samples for a covariance of 4 features: a poor estimate; 12 more examples would do",
    )


@pytest.mark.parametrize("parts", [("moments",), ("covariances",)])
def test_data_that_hardly_vary_are_told(parts: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(40, 3)
    skewed = x.clone()
    skewed[7] *= 100
    share = (skewed - skewed.mean(0)).square().sum(1)
    told = f"0.weight: one example makes up {share[7] / share.sum():.0%} of what varies: a poor estimate"
    assert pk.calibrate(model, [skewed], parts=parts).notes == (told,)
    # twenty examples of two samples each: no sample of the large one makes up more than half
    pairs = skewed.reshape(20, 2, 3).clone()
    pairs[3, 0] = pairs[3, 1]
    share = (pairs - pairs.mean((0, 1))).square().sum((1, 2))
    told = f"0.weight: one example makes up {share[3] / share.sum():.0%} of what varies: a poor estimate"
    assert pk.calibrate(model, [pairs], parts=parts).notes == (told,)
    constant = "0.weight: what it reads doesn't vary over 40 samples: a poor estimate"
    assert pk.calibrate(model, [x[:1].expand(40, 3)], parts=parts).notes == (constant,)
    assert pk.calibrate(model, [x], parts=parts).notes == ()
    one = pk.calibrate(model, [x[:1]], parts=parts).notes
    assert any("doesn't vary over 1 sample" in note or "1 sample for a covariance" in note for note in one)


def test_empty_batches_are_passed_over() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        torch.randn(90, 3),
    )
    results = []
    for batches in ([x], [x[:0], x], [x[:50], x[:0], x[50:], x[:0]]):
        small, importance = copy.deepcopy(model), CalibratedImportance(curvatures=False)
        result = pk.prune(small, x, ratio=0.5, calibration=batches, importance=importance)
        results.append((result.compensation, small.state_dict()))
    first, second, third = results
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], tensor) for name, tensor in second[1].items())
    torch.testing.assert_close(third[1], first[1], rtol=1e-3, atol=1e-3)
    with pytest.raises(pk.ArgumentError, match="There are no calibration batches"):
        pk.calibrate(model, [x[:0]])


def test_half_precision_is_widened() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 2).bfloat16(), (torch.randn(500, 8) + 10).bfloat16()
    found = pk.calibrate(model, [x]).sites["weight"].moments
    assert torch.allclose(found.variance[0], x.double().var(0, correction=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("batches", "options", "headline"),
    [
        ([], {}, "There are no calibration batches."),
        (torch.randn(2, 4), {}, "Calibration batches must be an iterable of batches."),
        (3, {}, "Calibration batches must be an iterable of batches."),
        ([torch.randn(2, 5)], {}, "The model's forward pass raised on a calibration batch."),
        ([torch.full((2, 4), float("nan"))], {}, "No value that a layer read was finite."),
        ([torch.randn(2, 4)], {"parts": ("moment",)}, "There are no statistics called 'moment'."),
        ([torch.randn(2, 4)], {"parts": ("fisher",)}, "Gradients need a loss."),
        ([torch.randn(2, 4)], {"layers": ["head"]}, "The model has no module named 'head'."),
        (
            [torch.randn(2, 4)],
            {"parts": ("gradients",), "loss_fn": lambda outputs, batch: outputs},
            "The loss must be a scalar tensor that depends on the parameters.",
        ),
        (
            pk.Batches([torch.randn(2, 4)], mask=lambda batch: torch.ones(2)),
            {},
            "A mask must be a tensor [batch, positions].",
        ),
        (pk.Batches([torch.randn(2, 4)], mask=lambda batch: torch.zeros(2, 3)), {}, "A mask leaves nothing."),
        (pk.Batches([torch.randn(2, 4)], mask=lambda batch: torch.tensor([[0, -0.5]])), {}, "A mask isn't understood."),
    ],
)
def test_bad_input_is_told(batches: Any, options: dict[str, Any], headline: str) -> None:
    with pytest.raises(pk.ArgumentError) as caught:
        pk.calibrate(nn.Sequential(nn.Linear(4, 3)), batches, **options)
    assert caught.value.headline == headline

"""Quantisation-aware training and graphs as sparse matrices: per-channel buffers are cut, adjacencies stay."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import prunekit as pk


class FakeQuantized(nn.Module):
    """Convolutions whose weights are rounded per channel, and activations per tensor, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        for name, width in (("first", 8), ("last", 4)):
            self.register_buffer(f"{name}_scale", torch.rand(width) * 0.05 + 0.01)
            self.register_buffer(f"{name}_point", torch.randint(-5, 5, (width,), dtype=torch.int32))
        self.register_buffer("scale", torch.tensor([0.05]))
        self.register_buffer("point", torch.tensor([2], dtype=torch.int32))

    def convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        layer = getattr(self, name)
        scale, point = getattr(self, f"{name}_scale"), getattr(self, f"{name}_point")
        weight = torch.fake_quantize_per_channel_affine(layer.weight, scale, point, 0, -128, 127)
        return nn.functional.conv2d(x, weight, layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolve("first", x).relu()
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.point, 0, 255)
        return self.convolve("last", x)


def test_scales_and_zero_points_of_channels_are_cut_with_them() -> None:
    torch.manual_seed(0)
    model, x = FakeQuantized().eval(), torch.randn(2, 3, 8, 8)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert result.report.pruned == {"first": (8, 4)}
    kept = list(result.plan.cuts[0].kept)
    assert torch.equal(model.first_scale, original.first_scale[kept])
    assert torch.equal(model.first_point, original.first_point[kept])
    assert model.first_point.dtype is torch.int32
    with torch.no_grad():
        hidden = original.convolve("first", x).relu()[:, kept]
        hidden = torch.fake_quantize_per_tensor_affine(hidden, original.scale, original.point, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(
            original.last.weight, original.last_scale, original.last_point, 0, -128, 127
        )
        expected = nn.functional.conv2d(hidden, weight[:, kept], original.last.bias)
        torch.testing.assert_close(model(x), expected)
    assert pk.check_exact(original, model, result.plan, x).exact


@pytest.mark.parametrize("observing", [True, False])
def test_prepared_models_of_torch_ao(observing: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
        quantization.prepare_qat(model.train(), inplace=True)
        x = torch.randn(2, 3, 10, 10)
        model(x)
        if not observing:
            model.apply(quantization.disable_observer)
        model.eval()
        original = copy.deepcopy(model)
        result = pk.prune(model, x, verify="always")
        assert "verified: relative error" in str(result.verification)  # observers move once on each side
        assert pk.check_exact(original, model, result.plan, x).exact
        assert result.report.pruned == {"0": (8, 4), "2": (6, 3)}
        for name, width in (("0", 4), ("2", 3), ("4", 4)):
            observer = model.get_submodule(name).weight_fake_quant
            assert len(observer.scale) == len(observer.zero_point) == width
            assert len(observer.activation_post_process.min_val) == width
        assert model(x).shape == (2, 4, 6, 6)


class Graph(nn.Module):
    """Two graph convolutions with a sparse adjacency that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        places = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 3, 2, 0, 4]])
        self.register_buffer("places", places)
        self.register_buffer("weights", torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        adjacency = torch.sparse_coo_tensor(self.places, self.weights, (5, 5))
        x = torch.sparse.mm(adjacency, self.first(x)).relu()
        return self.last(adjacency @ x)


def test_features_of_a_sparse_graph_shrink() -> None:
    torch.manual_seed(0)
    model, x = Graph().eval(), torch.randn(5, 8)
    original = copy.deepcopy(model)
    result = pk.prune(model, x)
    assert result.report.pruned == {"first": (16, 8)}
    kept = list(result.plan.cuts[0].kept)
    dense = torch.zeros(5, 5).index_put((original.places[0], original.places[1]), original.weights, accumulate=True)
    with torch.no_grad():
        hidden = (dense @ original.first(x)).relu()[:, kept]
        expected = (dense @ hidden) @ original.last.weight[:, kept].T + original.last.bias
        torch.testing.assert_close(model(x), expected)

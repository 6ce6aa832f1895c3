"""Pruning functions, one layer at a time; layer types through the kit; the stand-in for multi-head attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from prunekit import UnitsError, check_exact, prune
from prunekit.testing import check_layer_type, sample
from prunekit_plugins import layers
from prunekit_plugins.layers import PrunableMultiheadAttention

Slices = dict[str, tuple[int, list[int]]]


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def filled(layer: nn.Module) -> nn.Module:
    """Gives every parameter and buffer element a value of its own; statistics are positive."""
    for seed, tensor in enumerate([*layer.parameters(), *layer.buffers()]):
        if tensor.is_floating_point():
            tensor.data = sample(*tensor.shape, seed=seed, dtype=torch.float32).abs() + seed * 1000
    return layer


@attrs.frozen(eq=False)
class Cut:
    """One call of a pruning function, with everything that must be true afterwards.

    Attributes:
        function: Name in ``prunekit_plugins.layers``.
        make: Builds the layer.
        gone: Indices to remove.
        slices: Parameter or buffer to (dim, positions that stay); all others stay whole.
        attributes: Attribute values afterwards.
    """

    function: str
    make: Callable[[], nn.Module]
    gone: Sequence[int]
    slices: Slices
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.function}-{self.make()}"

    def call(self, layer: nn.Module, indices: Any) -> nn.Module:
        result = getattr(layers, self.function)(layer, indices)
        assert isinstance(result, nn.Module)
        return result

    @property
    def size(self) -> int:
        """Number of units that the function numbers."""
        return max(max(kept) for _, kept in self.slices.values()) + 1 if self.slices else 0


def norm(function: str, make: Callable[[], nn.Module], names: str, **attributes: Any) -> list[Cut]:
    slices: Slices = {name: (0, [0, 2, 3, 5]) for name in names.split()}
    return [Cut(f"prune_{function}_{way}_channels", make, [4, 1], slices, attributes) for way in ("out", "in")]


CUTS = [
    Cut(
        "prune_conv_out_channels",
        lambda: nn.Conv2d(3, 6, 3),
        [4, 1],
        {"weight": (0, [0, 2, 3, 5]), "bias": (0, [0, 2, 3, 5])},
        {"out_channels": 4, "in_channels": 3, "groups": 1},
    ),
    Cut(
        "prune_conv_out_channels",
        lambda: nn.Conv1d(3, 4, 3, bias=False),
        [3],
        {"weight": (0, [0, 1, 2])},
        {"out_channels": 3},
    ),
    Cut(
        "prune_conv_in_channels",
        lambda: nn.Conv3d(4, 3, 2),
        [0],
        {"weight": (1, [1, 2, 3])},
        {"in_channels": 3, "out_channels": 3},
    ),
    Cut(
        "prune_conv_out_channels",
        lambda: nn.ConvTranspose2d(3, 6, 3),
        [4, 1],
        {"weight": (1, [0, 2, 3, 5]), "bias": (0, [0, 2, 3, 5])},
        {"out_channels": 4, "in_channels": 3},
    ),
    Cut(
        "prune_conv_in_channels",
        lambda: nn.ConvTranspose1d(4, 3, 2),
        [2],
        {"weight": (0, [0, 1, 3])},
        {"in_channels": 3},
    ),
    Cut(
        "prune_recurrent_in_channels",
        lambda: nn.GRU(5, 3, 2),
        [1, 0],
        {"weight_ih_l0": (1, [2, 3, 4])},
        {"hidden_size": 3, "input_size": 3},
    ),
    # grouped: the same positions of every group
    Cut(
        "prune_conv_out_channels",
        lambda: nn.Conv2d(4, 6, 1, groups=2),
        [1, 4],
        {"weight": (0, [0, 2, 3, 5]), "bias": (0, [0, 2, 3, 5])},
        {"out_channels": 4, "in_channels": 4, "groups": 2},
    ),
    Cut(
        "prune_conv_in_channels",
        lambda: nn.Conv2d(6, 4, 1, groups=2),
        [0, 3],
        {"weight": (1, [1, 2])},
        {"in_channels": 4, "groups": 2},
    ),
    Cut(
        "prune_conv_out_channels",
        lambda: nn.ConvTranspose2d(4, 6, 1, groups=2),
        [2, 5],
        {"weight": (1, [0, 1]), "bias": (0, [0, 1, 3, 4])},
        {"out_channels": 4, "in_channels": 4, "groups": 2},
    ),
    Cut(
        "prune_conv_in_channels",
        lambda: nn.ConvTranspose2d(6, 4, 1, groups=2),
        [0, 3],
        {"weight": (0, [1, 2, 4, 5])},
        {"in_channels": 4, "groups": 2},
    ),
    *(
        Cut(
            name,
            lambda: nn.Conv2d(6, 6, 3, groups=6),
            [4, 1],
            {"weight": (0, [0, 2, 3, 5]), "bias": (0, [0, 2, 3, 5])},
            {"out_channels": 4, "in_channels": 4, "groups": 4},
        )
        for name in (
            "prune_depthwise_conv_out_channels",
            "prune_depthwise_conv_in_channels",
            "prune_conv_out_channels",
            "prune_conv_in_channels",
        )
    ),
    Cut(
        "prune_linear_out_channels",
        lambda: nn.Linear(3, 6),
        [4, 1],
        {"weight": (0, [0, 2, 3, 5]), "bias": (0, [0, 2, 3, 5])},
        {"out_features": 4, "in_features": 3},
    ),
    Cut(
        "prune_linear_out_channels",
        lambda: nn.Linear(3, 3, bias=False),
        [0],
        {"weight": (0, [1, 2])},
        {"out_features": 2},
    ),
    Cut(
        "prune_linear_in_channels",
        lambda: nn.Linear(4, 3),
        [3, 0],
        {"weight": (1, [1, 2])},
        {"in_features": 2, "out_features": 3},
    ),
    *norm("batchnorm", lambda: nn.BatchNorm2d(6), "weight bias running_mean running_var", num_features=4),
    *norm("batchnorm", lambda: nn.BatchNorm1d(6, affine=False), "running_mean running_var", num_features=4),
    *norm("batchnorm", lambda: nn.BatchNorm3d(6, track_running_stats=False), "weight bias", num_features=4),
    *norm("instancenorm", lambda: nn.InstanceNorm2d(6, affine=True), "weight bias", num_features=4),
    *norm(
        "instancenorm",
        lambda: nn.InstanceNorm1d(6, affine=True, track_running_stats=True),
        "weight bias running_mean running_var",
        num_features=4,
    ),
    *norm("layernorm", lambda: nn.LayerNorm(6), "weight bias", normalized_shape=(4,)),
    *norm("layernorm", lambda: nn.LayerNorm(6, bias=False), "weight", normalized_shape=(4,)),
    *norm("layernorm", lambda: nn.RMSNorm(6), "weight", normalized_shape=(4,)),
    Cut(
        "prune_layernorm_out_channels",
        lambda: nn.LayerNorm((2, 4)),
        [1],
        {"weight": (1, [0, 2, 3]), "bias": (1, [0, 2, 3])},
        {"normalized_shape": (2, 3)},
    ),
    *norm("groupnorm", lambda: nn.GroupNorm(2, 6), "weight bias", num_channels=4, num_groups=2),
    *norm("prelu", lambda: nn.PReLU(6), "weight", num_parameters=4),
    *(
        Cut(
            f"prune_embedding_{way}_channels",
            lambda: nn.Embedding(5, 4),
            [2],
            {"weight": (1, [0, 1, 3])},
            {"embedding_dim": 3, "num_embeddings": 5},
        )
        for way in ("out", "in")
    ),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_stays(cut: Cut, as_tensor: bool) -> None:
    layer = filled(cut.make())
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        parameter.grad = parameter.detach() * 2
    result = cut.call(layer, torch.tensor(cut.gone) if as_tensor else list(cut.gone))
    assert result is layer
    after = layer.state_dict()
    assert after.keys() == before.keys()
    for name, old in before.items():
        dim, kept = cut.slices.get(name, (0, list(range(len(old))) if old.dim() else []))
        expected = old.index_select(dim, torch.tensor(kept)) if old.dim() else old
        assert torch.equal(after[name], expected), name
        if name in parameters:
            assert dict(layer.named_parameters())[name] is parameters[name]
            gradient = parameters[name].grad
            assert gradient is not None
            assert torch.equal(gradient, expected * 2)
    assert {name: getattr(layer, name) for name in cut.attributes} == cut.attributes


def total(cut: Cut) -> int:
    """Number of units before the cut, from the layer's own attributes."""
    layer = cut.make()
    names = {
        "conv_out": "out_channels",
        "conv_in": "in_channels",
        "linear_out": "out_features",
        "linear_in": "in_features",
        "groupnorm": "num_channels",
        "prelu": "num_parameters",
        "embedding": "embedding_dim",
        "layernorm": "normalized_shape",
        "norm": "num_features",
        "recurrent_in": "input_size",
    }
    name = next(attribute for part, attribute in names.items() if part in cut.function)
    value = getattr(layer, name)
    return int(value[-1] if isinstance(value, tuple) else value)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_wrong_indices(cut: Cut) -> None:
    size = total(cut)
    wrong: list[tuple[Any, str]] = [
        ([size], "out of range"),
        ([-1], "out of range"),
        (torch.tensor([0, size + 3]), "out of range"),
        ([*cut.gone, cut.gone[0]], "repeated"),
        (list(range(size)), "All units of a layer can't be removed"),
        ([0.5], "must be integers"),
        ([True], "must be integers"),
        (torch.tensor([0.0]), "must be integers"),
        (torch.tensor([True, False]), "must be integers"),
    ]
    for indices, message in wrong:
        layer = filled(cut.make())
        before, text = copy.deepcopy(layer.state_dict()), str(layer)
        with pytest.raises(UnitsError, match=message):
            cut.call(layer, indices)
        assert str(layer) == text
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_nothing_to_remove(cut: Cut) -> None:
    layer = filled(cut.make())
    before = copy.deepcopy(layer.state_dict())
    cut.call(layer, [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_groups_lose_the_same_channels() -> None:
    layer = nn.Conv2d(4, 6, 1, groups=2)
    with pytest.raises(UnitsError, match="loses the same channels in every group"):
        layers.prune_conv_out_channels(layer, [0])
    with pytest.raises(UnitsError, match="loses the same channels in every group"):
        layers.prune_conv_in_channels(layer, [0, 1])
    assert tuple(layer.weight.shape) == (6, 2, 1, 1)


def test_norm_groups_stay_whole() -> None:
    with pytest.raises(UnitsError, match="don't divide into the groups"):
        layers.prune_groupnorm_out_channels(nn.GroupNorm(2, 6), [0])


def test_a_shared_slope_stays() -> None:
    layer = nn.PReLU()
    assert layers.prune_prelu_out_channels(layer, [3, 5]) is layer
    assert layer.num_parameters == 1
    assert tuple(layer.weight.shape) == (1,)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("projected", [0, 3])
def test_recurrent_units_leave_every_cell(projected: int) -> None:
    layer = filled(nn.LSTM(5, 4, 2, bidirectional=True, proj_size=projected))
    before = copy.deepcopy(layer.state_dict())
    assert layers.prune_recurrent_out_channels(layer, [1]) is layer
    out = projected or 4
    units = [k for k in range(out) if k != 1]
    rows = list(range(16)) if projected else [gate * 4 + unit for gate in range(4) for unit in units]
    both = units + [out + unit for unit in units]
    for end in ("", "_reverse"):
        assert torch.equal(getattr(layer, f"weight_ih_l0{end}"), before[f"weight_ih_l0{end}"][rows])
        assert torch.equal(getattr(layer, f"weight_ih_l1{end}"), before[f"weight_ih_l1{end}"][rows][:, both])
        for depth in "01":
            name = f"l{depth}{end}"
            assert torch.equal(getattr(layer, f"weight_hh_{name}"), before[f"weight_hh_{name}"][rows][:, units])
            assert torch.equal(getattr(layer, f"bias_hh_{name}"), before[f"bias_hh_{name}"][rows])
            if projected:
                assert torch.equal(getattr(layer, f"weight_hr_{name}"), before[f"weight_hr_{name}"][units])
    assert (layer.hidden_size, layer.proj_size) == ((4, 2) if projected else (3, 0))
    assert layer(torch.ones(7, 2, 5))[0].shape == (7, 2, 2 * len(units))


def test_every_function_is_covered() -> None:
    functions = {name for name in layers.__all__ if name.startswith("prune_")}
    elsewhere = {f"prune_multihead_attention_{way}_channels" for way in ("in", "out")}  # further down
    elsewhere |= {"prune_recurrent_out_channels"}
    elsewhere |= {f"prune_parameter_{way}_channels" for way in ("in", "out")}
    assert functions == {cut.function for cut in CUTS} | elsewhere


def test_bare_parameters() -> None:
    parameter = nn.Parameter(torch.arange(12.0).view(3, 4))
    parameter.grad = torch.ones(3, 4)
    assert layers.prune_parameter_out_channels(parameter, [2, 0]) is parameter
    assert parameter.tolist() == [[1, 3], [5, 7], [9, 11]]
    assert parameter.grad.shape == (3, 2)
    assert layers.prune_parameter_in_channels(parameter, [1], dim=0).tolist() == [[1, 3], [9, 11]]
    for wrong in ([0, 1], [2], [0, 0]):
        with pytest.raises(UnitsError):
            layers.prune_parameter_out_channels(parameter, wrong)
    assert parameter.shape == (2, 2)


# -- layer types


def picture(channels: int, *rest: int) -> torch.Tensor:
    return torch.randn(2, channels, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


LAYERS: list[tuple[Callable[[], nn.Module], list[torch.Tensor]]] = [
    (lambda: nn.Conv1d(4, 6, 3), [picture(4, 7)]),
    (lambda: nn.Conv2d(4, 6, 3, bias=False), [picture(4, 5, 5)]),
    (lambda: nn.Conv3d(4, 6, 2), [picture(4, 3, 3, 3)]),
    (lambda: nn.Conv2d(6, 9, 3, groups=3), [picture(6, 5, 5)]),
    (lambda: nn.Conv2d(6, 6, 3, groups=6), [picture(6, 5, 5)]),
    (lambda: nn.Conv2d(6, 12, 3, groups=6), [picture(6, 5, 5)]),
    (lambda: nn.ConvTranspose1d(4, 6, 3), [picture(4, 5)]),
    (lambda: nn.ConvTranspose2d(4, 6, 3), [picture(4, 5, 5)]),
    (lambda: nn.ConvTranspose3d(4, 6, 2), [picture(4, 3, 3, 3)]),
    (lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), [picture(6, 5, 5)]),
    (lambda: nn.ConvTranspose2d(6, 6, 3, groups=6), [picture(6, 5, 5)]),
    (lambda: nn.Linear(4, 6), [picture(4)]),
    (lambda: nn.Linear(4, 6, bias=False), [picture(3, 4)]),
    (lambda: nn.BatchNorm1d(6), [picture(6)]),
    (lambda: nn.BatchNorm2d(6), [picture(6, 3, 3)]),
    (lambda: nn.BatchNorm3d(6, affine=False), [picture(6, 2, 2, 2)]),
    (lambda: nn.BatchNorm2d(6, track_running_stats=False), [picture(6, 3, 3)]),
    (lambda: nn.InstanceNorm1d(6, affine=True), [picture(6, 5)]),
    (lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), [picture(6, 5, 5)]),
    (lambda: nn.LayerNorm(6), [picture(4, 6)]),
    (lambda: nn.LayerNorm(6, bias=False), [picture(4, 6)]),
    (lambda: nn.LayerNorm((4, 6)), [picture(4, 6)]),
    (lambda: nn.RMSNorm(6), [picture(4, 6)]),
    (lambda: nn.GroupNorm(3, 6), [picture(6, 4)]),
    (lambda: nn.GroupNorm(1, 6), [picture(6, 4)]),
    (lambda: nn.GroupNorm(6, 6), [picture(6, 4)]),
    (lambda: nn.PReLU(6), [picture(6, 4)]),
    (lambda: nn.Embedding(7, 6), [torch.tensor([[1, 4], [3, 0]])]),
    (lambda: nn.RNN(4, 6), [picture(3, 4)]),
    (lambda: nn.GRU(4, 6, 2, batch_first=True), [picture(3, 4)]),
    (lambda: nn.LSTM(4, 6, 2, bidirectional=True), [picture(3, 4)]),
    (lambda: nn.LSTM(4, 8, proj_size=3), [picture(3, 4)]),
    (lambda: nn.GRUCell(4, 6, bias=False), [picture(4)]),
    (lambda: nn.LSTMCell(4, 6), [picture(4)]),
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [picture(3, 8), picture(3, 8), picture(3, 8)]),
    (lambda: nn.MultiheadAttention(8, 2, bias=False), [picture(3, 8), picture(3, 8), picture(3, 8)]),
    (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        [picture(3, 8), picture(5, 6), picture(5, 4)],
    ),
    (lambda: PrunableMultiheadAttention(nn.MultiheadAttention(8, 2, batch_first=True)), [picture(3, 8)] * 3),
    (lambda: nn.Dropout(0.5), [picture(6)]),
    (lambda: nn.Dropout1d(0.5), [picture(6, 3)]),
    (lambda: nn.Dropout2d(0.5), [picture(6, 3, 3)]),
    (lambda: nn.Dropout3d(0.5), [picture(6, 2, 2, 2)]),
    (lambda: nn.AlphaDropout(0.5), [picture(6)]),
    (lambda: nn.FeatureAlphaDropout(0.5), [picture(6, 3, 3)]),
    (lambda: StochasticDepth(0.5, "row"), [picture(6, 3, 3)]),
    (lambda: DropPath(0.5), [picture(6, 3, 3)]),
]


@pytest.mark.parametrize(("make", "inputs"), LAYERS, ids=[str(make()).replace("\n", "") for make, _ in LAYERS])
def test_layer_type(make: Callable[[], nn.Module], inputs: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(layer.state_dict())
    assert check_layer_type(layer, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_every_layer_type_is_covered() -> None:
    covered = {name for make, _ in LAYERS for cls in type(make()).__mro__ for name in (cls, full_name(cls))}
    assert [key for key in layers.prunekit_layer_types() if key not in covered] == []


# -- the stand-in for multi-head attention

DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}


def twins(dtype: torch.dtype, **options: Any) -> tuple[nn.MultiheadAttention, PrunableMultiheadAttention]:
    torch.manual_seed(1)
    source = nn.MultiheadAttention(8, 2, dtype=dtype, **options)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.5)
    return source, PrunableMultiheadAttention(source)


def agree(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def inputs_for(
    dtype: torch.dtype, batch_first: bool, batched: bool, widths: tuple[int, int, int] = (8, 8, 8)
) -> list[torch.Tensor]:
    torch.manual_seed(2)
    made = [torch.randn(3, length, width, dtype=dtype) for length, width in zip((4, 5, 5), widths, strict=True)]
    if not batched:
        return [tensor[0] for tensor in made]
    return made if batch_first else [tensor.transpose(0, 1) for tensor in made]


MASKS: dict[str, Callable[[torch.dtype], torch.Tensor | None]] = {
    "none": lambda dtype: None,
    "bool 2d": lambda dtype: torch.arange(20).reshape(4, 5) % 3 == 1,
    "float 2d": lambda dtype: torch.linspace(-1, 1, 20).reshape(4, 5).to(dtype),
    "bool 3d": lambda dtype: torch.arange(120).reshape(6, 4, 5) % 7 == 2,
    "float 3d": lambda dtype: torch.linspace(-2, 1, 120).reshape(6, 4, 5).to(dtype),
}
PADDING: dict[str, Callable[[torch.dtype], torch.Tensor | None]] = {
    "none": lambda dtype: None,
    "bool": lambda dtype: torch.tensor([[0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool),
    "float": lambda dtype: torch.linspace(-1, 1, 15).reshape(3, 5).to(dtype),
}


def same_kind(mask: torch.Tensor | None, padding: torch.Tensor | None) -> bool:
    """Masks of two kinds together are deprecated by torch."""
    return mask is None or padding is None or (mask.dtype is torch.bool) == (padding.dtype is torch.bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_call_options(dtype: torch.dtype, batch_first: bool, batched: bool, padding: str, mask: str) -> None:
    source, stand_in = twins(dtype, batch_first=batch_first)
    inputs = inputs_for(dtype, batch_first, batched)
    blocked, padded = MASKS[mask](dtype), PADDING[padding](dtype)
    if not same_kind(blocked, padded):
        pytest.skip("torch warns about masks of two kinds")
    if not batched:
        blocked = blocked[:2] if blocked is not None and blocked.dim() == 3 else blocked
        padded = None if padded is None else padded[1]
    for need_weights, average in ((False, True), (True, True), (True, False)):
        options = {
            "key_padding_mask": padded,
            "attn_mask": blocked,
            "need_weights": need_weights,
            "average_attn_weights": average,
        }
        agree(stand_in(*inputs, **options), source(*inputs, **options), DTYPES[dtype])
        assert stand_in(*inputs, **options)[0].stride() == source(*inputs, **options)[0].stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 10}, {"kdim": 6, "bias": False}], ids=str)
def test_attention_layouts(dtype: torch.dtype, options: dict[str, Any]) -> None:
    source, stand_in = twins(dtype, batch_first=True, **options)
    inputs = inputs_for(dtype, True, True, (8, options.get("kdim", 8), options.get("vdim", 8)))
    agree(stand_in(*inputs), source(*inputs), DTYPES[dtype])
    agree(stand_in(*inputs, need_weights=False), source(*inputs, need_weights=False), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_causal_hint(dtype: torch.dtype, need_weights: bool) -> None:
    source, stand_in = twins(dtype, batch_first=True)
    x = inputs_for(dtype, True, True)[0]
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    options = {"attn_mask": causal, "is_causal": True, "need_weights": need_weights}
    agree(stand_in(x, x, x, **options), source(x, x, x, **options), DTYPES[dtype])
    if not need_weights:
        with pytest.raises(RuntimeError, match="attn_mask"):
            source(x, x, x, is_causal=True, need_weights=False)
        with pytest.raises(RuntimeError, match="attn_mask"):
            stand_in(x, x, x, is_causal=True, need_weights=False)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_rows_with_every_key_blocked(need_weights: bool) -> None:
    source, stand_in = twins(torch.float64, batch_first=True)
    inputs = inputs_for(torch.float64, True, True)
    blocked = torch.zeros(4, 5, dtype=torch.bool)
    blocked[2] = True
    options = {"attn_mask": blocked, "need_weights": need_weights}
    agree(stand_in(*inputs, **options), source(*inputs, **options), 1e-12)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_dropout(need_weights: bool) -> None:
    source, stand_in = twins(torch.float64, batch_first=True, dropout=0.5)
    inputs = inputs_for(torch.float64, True, True)
    stand_in.train()
    torch.manual_seed(0)
    first = stand_in(*inputs, need_weights=need_weights)[0]
    second = stand_in(*inputs, need_weights=need_weights)[0]
    assert not torch.allclose(first, second)
    source.eval()
    stand_in.eval()
    agree(stand_in(*inputs, need_weights=need_weights), source(*inputs, need_weights=need_weights), 1e-12)


def test_attention_shares_parameters() -> None:
    source, stand_in = twins(torch.float32)
    assert dict(stand_in.named_parameters()) == dict(source.named_parameters())
    assert stand_in.state_dict().keys() == source.state_dict().keys()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_in_an_encoder(training: bool, masked: bool, norm_first: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    original = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, norm_first=norm_first, batch_first=batch_first, dtype=torch.float64
    ).train(training)
    exchanged = copy.deepcopy(original)
    exchanged.self_attn = PrunableMultiheadAttention(exchanged.self_attn).train(training)  # type: ignore[assignment]
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    options: dict[str, Any] = {}
    if masked:
        length, batch = (5, 3) if batch_first else (3, 5)
        padding = torch.zeros(batch, length, dtype=torch.bool)
        padding[1, -1] = True
        options = {"src_mask": torch.ones(length, length, dtype=torch.bool).triu(1), "src_key_padding_mask": padding}
    agree([exchanged(x, **options)], [original(x, **options)], 1e-12)
    with torch.no_grad():
        expected = original(x, **options)
        found = exchanged(x, **options)
    agree([found], [expected], 1e-12)


def test_attention_gradients() -> None:
    source, stand_in = twins(torch.float64, batch_first=True)
    inputs = [tensor.requires_grad_() for tensor in inputs_for(torch.float64, True, True)]
    found = torch.autograd.grad(stand_in(*inputs)[0].square().sum(), [*inputs, *stand_in.parameters()])
    expected = torch.autograd.grad(source(*inputs)[0].square().sum(), [*inputs, *source.parameters()])
    agree(found, expected, 1e-11)


ROWS: tuple[dict[str, Any], ...] = (
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", ROWS, ids=str)
def test_attention_to_rows_of_its_own(options: dict[str, Any], mask: str, padding: str) -> None:
    dtype = torch.float64
    source, stand_in = twins(dtype, batch_first=True, **options)
    blocked, padded = MASKS[mask](dtype), PADDING[padding](dtype)
    if not same_kind(blocked, padded):
        pytest.skip("torch warns about masks of two kinds")
    for need_weights, average in ((False, True), (True, True), (True, False)):
        call = {"key_padding_mask": padded, "attn_mask": blocked, "need_weights": need_weights}
        inputs = inputs_for(dtype, True, True)
        found = stand_in(*inputs, **call, average_attn_weights=average)
        agree(found, source(*inputs, **call, average_attn_weights=average), 1e-12)


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_attention_to_rows_of_its_own_is_pruned(options: dict[str, Any]) -> None:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(4, 16), nn.Linear(16, 3)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embed(x)
            y: torch.Tensor = self.out(h + self.attention(h, h, h)[0])
            return y

    model, x = Attended().double().eval(), torch.randn(2, 5, 4).double()
    original = copy.deepcopy(model)
    result = prune(model, x, prune_num_heads=True)
    assert (model.attention.num_heads, model.attention.qk_head_dim, model.attention.v_head_dim) == (2, 2, 2)  # type: ignore[comparison-overlap]
    if "add_bias_kv" in options:
        assert model.attention.bias_k.shape == model.attention.bias_v.shape == (1, 1, 4)  # type: ignore[union-attr]
    assert check_exact(original, model, result.plan, x).exact


@pytest.mark.parametrize("way", ["out", "in"])
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=str)
def test_pruning_the_stream_of_a_stand_in(way: str, options: dict[str, Any]) -> None:
    stand_in = twins(torch.float64, batch_first=True, **options)[1]
    before = copy.deepcopy(stand_in.state_dict())
    function = getattr(layers, f"prune_multihead_attention_{way}_channels")
    assert function(stand_in, torch.tensor([7, 0])) is stand_in
    after, kept = stand_in.state_dict(), torch.arange(1, 7)
    assert torch.equal(after["in_proj_weight"], before["in_proj_weight"][:, kept])
    assert torch.equal(after["out_proj.weight"], before["out_proj.weight"][kept])
    if not options:
        assert torch.equal(after["in_proj_bias"], before["in_proj_bias"])
        assert torch.equal(after["out_proj.bias"], before["out_proj.bias"][kept])
    assert (stand_in.embed_dim, stand_in.out_proj.out_features) == (6, 6)
    assert (stand_in.num_heads, stand_in.qk_head_dim, stand_in.v_head_dim) == (2, 4, 4)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert stand_in(x, x, x)[0].shape == (2, 3, 6)


@pytest.mark.parametrize("indices", [[8], [-1], [1, 1], list(range(8))], ids=str)
def test_wrong_indices_of_a_stand_in(indices: list[int]) -> None:
    stand_in = twins(torch.float64)[1]
    with pytest.raises(UnitsError):
        layers.prune_multihead_attention_out_channels(stand_in, indices)
    assert stand_in.embed_dim == 8


def test_attention_itself_is_not_pruned_alone() -> None:
    with pytest.raises(UnitsError, match="can't hold an inner width"):
        layers.prune_multihead_attention_out_channels(nn.MultiheadAttention(8, 2), [0])

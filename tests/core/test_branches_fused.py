"""PyTorch's fused transformer layers: they read the weights of the modules in them where no recording sees it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.absent import Absent

PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
LAST = {"self_attn": "self_attn.out_proj", "linear1": "linear2"}
"""Of each branch the layer whose zeros switch it off."""


def encoder(*, batch_first: bool = True, norm_first: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, norm_first=norm_first)
    nested = batch_first and not norm_first  # else PyTorch warns
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=nested).eval()


def switched_off(model: nn.Module, names: list[str]) -> nn.Module:
    """The original with the last layer of some branches zero, which is all that these add."""
    off = copy.deepcopy(model)
    for name in names:
        layer, _, branch = name.rpartition(".")
        last: Any = off.get_submodule(f"{layer}.{LAST[branch]}")
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return off


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["layers.0.self_attn"],
        ["layers.1.linear1"],
        ["layers.1.self_attn", "layers.2.linear1"],
        ["layers.0.self_attn", "layers.0.linear1"],  # nn.TransformerEncoder asks its first layer for an attention
    ],
    ids="+".join,
)
def test_a_fused_encoder_goes_on_without_its_branches(
    names: list[str], batch_first: bool, norm_first: bool, padded: bool
) -> None:
    model = encoder(batch_first=batch_first, norm_first=norm_first)
    x, mask = torch.randn(2, 5, 16), PADDING if padded else None
    given = x if batch_first else x.transpose(0, 1)
    small = copy.deepcopy(model)
    pk.Graph.of(model, given).plan_without(names).apply(small)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        expected = switched_off(model, names)(given, src_key_padding_mask=mask)
        found = small(given, src_key_padding_mask=mask)
    seen = ~PADDING if padded else torch.ones(2, 5, dtype=torch.bool)  # what fused layers return of padding is zero
    if not batch_first:
        seen = seen.T
    torch.testing.assert_close(found[seen], expected[seen])


def test_layers_that_lose_nothing_stay_fused() -> None:
    model = encoder()
    pk.Graph.of(model, torch.randn(2, 5, 16)).plan_without(["layers.1.linear1"]).apply(model)
    layers: Any = model.layers
    assert [layer.activation_relu_or_gelu for layer in layers] == [1, 0, 1]
    assert not model.use_nested_tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_narrower_attention_takes_padding() -> None:
    """Its attentions are exchanged for such that take no nested tensors."""
    model = nn.Sequential(encoder(), nn.Linear(16, 4)).eval()
    pk.prune(model, torch.randn(2, 5, 16))
    small: Any = model[0]
    x = torch.randn(2, 5, small.layers[0].linear1.in_features)
    slow = copy.deepcopy(small).train()
    for module in slow.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with torch.no_grad():
        found = small(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(found[~PADDING], slow(x, src_key_padding_mask=PADDING)[~PADDING])


def test_what_stands_in_keeps_flags_and_has_no_bias() -> None:
    model = encoder()
    pk.Graph.of(model, torch.randn(2, 5, 16)).plan_without(["layers.0.self_attn"]).apply(model)
    absent: Any = model.layers[0].self_attn
    assert isinstance(absent, Absent)
    assert (absent.batch_first, absent._qkv_same_embed_dim, absent.dropout) == (True, True, 0.1)
    assert absent.in_proj_bias is None
    assert not hasattr(absent, "num_heads")  # an integer, which a later cut would have to change
    assert not hasattr(absent, "in_proj_weight")

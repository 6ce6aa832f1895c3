"""Costs at a length and for decoded tokens, compared with PyTorch's flop counter and real caches on the same calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunekit as pk
from prunekit_plugins.budgets.inference.workload import Generation, Workload
from prunekit_plugins.reports import report_data
from tests.core.test_inference_costs import real_cache, real_weights

transformers = pytest.importorskip("transformers", reason="needs prunekit[hf]")
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "attn_implementation": "eager",
}  # fmt: skip
INPUTS = {"input_ids": torch.arange(10).view(2, 5)}


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def gemma(window: int = 64) -> Any:
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**SIZES, sliding_window=window, layer_types=layers)
    return transformers.Gemma3ForCausalLM(config).eval()


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 32, (batch, length))


def real_macs(model: Any, batch: int, length: int, decode: int = 0) -> float:
    """Multiply-accumulates of a first call, and of one call for each decoded token."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        outputs = model(input_ids=ids(batch, length), use_cache=True)
        (key,) = [key for key in outputs if key != "logits"]
        for _ in range(decode):
            outputs = model(input_ids=ids(batch, 1), use_cache=True, **{key: outputs[key]})
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize(("batch", "length", "decode"), [(1, 12, 0), (3, 7, 1), (2, 9, 2), (1, 6, 5)])
def test_macs_are_those_of_the_workload(make: Any, batch: int, length: int, decode: int) -> None:
    model = make()
    whole = real_macs(model, batch, length, decode)
    workload = {"batch": batch, "length": length, **({"decode": decode} if decode else {})}
    result = pk.prune(model, INPUTS, target={"macs": 0.8}, workload=workload)
    assert result.preview.costs["macs"] == (whole, real_macs(model, batch, length, decode))
    assert 0.78 * whole < result.preview.costs["macs"][1] <= 0.8 * whole


def test_without_a_workload_costs_are_those_of_the_example_inputs() -> None:
    model = llama()
    whole = real_macs(model, 2, 5)
    assert pk.prune(model, INPUTS, 0.5).preview.costs["macs"] == (whole, real_macs(model, 2, 5))
    model = llama()
    alone = pk.prune(model, INPUTS, target={"macs": 0.8}, workload={"batch": 1})
    assert alone.preview.costs["macs"][0] == whole / 2


def test_what_a_target_takes_depends_on_the_workload() -> None:
    """With long inputs attention costs more, so that neurons alone have to save more."""
    sizes = []
    for length in (5, 400):
        model = llama()
        pk.prune(model, INPUTS, target={"macs": 0.9}, workload={"length": length}, prune_head_dims=False)
        sizes.append([layer.mlp.up_proj.out_features for layer in model.model.layers])
        assert real_macs(model, 2, length) <= 0.9 * real_macs(llama(), 2, length)
    assert sum(sizes[1]) < sum(sizes[0])


@pytest.mark.parametrize("make", [llama, lambda: gemma(8)])
def test_caches_are_as_long_as_all_that_is_read_and_decoded(make: Any) -> None:
    model = make()
    whole, weights = real_cache(model, {"input_ids": ids(3, 20)}), real_weights(model)
    released = {"free_outputs": ["cache"], "prune_num_heads": True, "prune_head_dims": False}
    workload = {"batch": 3, "length": 16, "decode": 4}
    result = pk.prune(model, INPUTS, target={"kv_memory": 0.6}, workload=workload, **released)
    small = real_cache(model, {"input_ids": ids(3, 20)})
    assert result.preview.costs["kv_memory"] == (whole + weights, small + real_weights(model))


def test_memory_is_that_of_the_first_call() -> None:
    inputs = {"input_ids": ids(3, 12)}
    expected = pk.prune(llama(), inputs, 0.5).preview.costs["memory"]
    result = pk.prune(llama(), INPUTS, 0.5, workload={"batch": 3, "length": 12, "decode": 6})
    assert result.preview.costs["memory"] == expected


def test_branches_are_weighed_by_the_workload() -> None:
    torch.manual_seed(1)
    batches = [{"input_ids": ids(2, 8)} for _ in range(2)]
    model, workload = llama(), {"batch": 1, "length": 24, "decode": 3}
    whole = real_macs(model, 1, 24, 3)
    result = pk.prune(model, INPUTS, target={"macs": 0.7}, by="depth", calibration=batches, workload=workload)
    assert result.report.absent
    assert result.preview.costs["macs"] == (whole, real_macs(model, 1, 24, 3))


def test_a_decoder_with_an_encoder_is_refused() -> None:
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    inputs = {"input_ids": ids(2, 8), "decoder_input_ids": ids(2, 1)}
    with pytest.raises(pk.ArgumentError, match="Tokens of a model with an encoder can't be decoded") as refused:
        pk.prune(model, inputs, target={"macs": 0.8}, workload={"decode": 4})
    assert refused.value.where == "decoder_input_ids"
    result = pk.prune(model, inputs, target={"macs": 0.8}, workload={"batch": 1, "length": 16})
    assert 0 < result.preview.costs["macs"][1] <= 0.8 * result.preview.costs["macs"][0]


def test_reports_say_what_costs_are_counted_for() -> None:
    workload = {"batch": 1, "length": 9, "decode": 2}
    result = pk.prune(llama(), INPUTS, target={"macs": 0.8}, workload=workload)
    note = "costs are counted for a workload: 1 example, 9 tokens each, then 2 tokens are decoded"
    assert note in result.report.notes
    assert result.protocol.arguments["workload"] == workload
    layers = report_data(result).layers
    assert sum(layer.macs[0] for layer in layers) == result.preview.costs["macs"][0]
    assert sum(layer.macs[1] for layer in layers) == result.preview.costs["macs"][1]
    assert "workload" not in pk.prune(llama(), INPUTS, 0.5).protocol.arguments


def test_images_have_a_batch_and_no_length() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    one = pk.prune(copy.deepcopy(net), x, 0.5).preview.costs["macs"]
    eight = pk.prune(copy.deepcopy(net), x, 0.5, workload={"batch": 8}).preview.costs["macs"]
    assert eight == tuple(8 * cost for cost in one)
    with pytest.raises(pk.ArgumentError, match="have no length") as error:
        pk.prune(net, x, 0.5, workload={"length": 8})
    assert "(1, 3, 8, 8)" in error.value.why


def test_masks_and_other_inputs_follow() -> None:
    """What has the batch's and the tokens' size is repeated; the rest stays."""
    inputs = {"input_ids": ids(2, 5), "mask": torch.ones(2, 5), "scale": torch.ones(7), "flag": True}
    (example,) = Workload(batch=3, length=9).examples(inputs)
    shapes = {name: tuple(value.shape) for name, value in example.kwargs.items() if name != "flag"}
    assert shapes == {"input_ids": (3, 9), "mask": (3, 9), "scale": (7,)}
    assert torch.equal(example.kwargs["input_ids"][2], inputs["input_ids"][0, [0, 1, 2, 3, 4, 0, 1, 2, 3]])
    assert (example.kwargs["flag"], example.counts) == (True, 1.0)


def test_masks_cover_the_cache_while_tokens_are_decoded() -> None:
    model, given = llama(), {"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    with torch.no_grad():
        outputs = Generation(3)(model, (), given)
        expected = model(input_ids=torch.cat([given["input_ids"], given["input_ids"][:, -1:].expand(-1, 3)], 1))
    torch.testing.assert_close(outputs["logits"][-1][:, -1], expected.logits[:, -1])


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({}, "table of whole numbers"),
        ([1], "table of whole numbers"),
        ({"batch": 0}, "table of whole numbers"),
        ({"batch": True}, "table of whole numbers"),
        ({"decode": -1}, "table of whole numbers"),
        ({"prompt": 4}, "no 'prompt'"),
    ],
)
def test_what_is_no_workload_is_refused(workload: Any, message: str) -> None:
    with pytest.raises(pk.ArgumentError, match=message):
        pk.prune(llama(), INPUTS, 0.5, workload=workload)


def test_decoding_wants_a_cache_and_plain_calls() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    with pytest.raises(pk.PrunekitError, match="no cache to decode with"):
        pk.prune(net, ids(1, 4) % 9, 0.5, workload={"decode": 2})
    with pytest.raises(pk.ArgumentError, match="plain calls of the model only"):
        pk.prune(llama(), INPUTS, 0.5, workload={"decode": 2}, forward_fn=lambda model, x: model(**x).logits)
    with pytest.raises(pk.ArgumentError, match="inputs with a batch"):
        Workload(batch=2).examples({"flag": True})

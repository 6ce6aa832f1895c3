"""Models of transformers built under torch.device("meta"): buffers that no file holds are computed by their class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.checkpoints import computed
from prunekit_plugins.checkpoints.computed import computed_buffers

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
IDS = {"input_ids": torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))}
BATCHES = [{"input_ids": torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(1))}]
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "bert": ("BertConfig", "BertModel", {}),
}


def built(name: str, *, empty: bool = False) -> Any:
    config, architecture, more = CLASSES[name]
    torch.manual_seed(0)
    with torch.device("meta" if empty else "cpu"):
        model = getattr(transformers, architecture)(getattr(transformers, config)(**{**SIZES, **more}))
    return model.eval()


def unsaved(model: nn.Module) -> dict[str, torch.Tensor]:
    saved = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


@pytest.mark.parametrize("name", CLASSES)
def test_buffers_are_those_of_a_model_that_was_built_with_values(name: str) -> None:
    empty, expected, state = built(name, empty=True), unsaved(built(name)), torch.get_rng_state()
    found = computed_buffers(empty)
    assert found.keys() == expected.keys()
    assert len(found) > 1
    for key, values in found.items():
        assert torch.equal(values, expected[key])
        assert values.dtype == expected[key].dtype
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_of_a_model_of_ones_own_are_computed_too() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = built("llama", empty=True).half()
            self.register_buffer("alone", torch.ones(2, device="meta"), persistent=False)

    found = computed_buffers(Own())
    expected = unsaved(built("llama").half())
    assert {f"inner.{name}" for name in expected} == found.keys()
    assert all(torch.equal(found[f"inner.{name}"], values) for name, values in expected.items())


def test_a_module_that_may_have_been_given_more_than_its_configuration_is_not_guessed() -> None:
    class Scaled(nn.Module):
        def __init__(self, config: float, base: float = 1.0) -> None:
            super().__init__()
            self.config = config
            self.register_buffer("factor", torch.full((2,), base * config), persistent=False)

    class Plain(Scaled):
        def __init__(self, config: float, device: str | None = None) -> None:
            super().__init__(config, base=7.0)

    with torch.device("meta"):
        model = nn.ModuleDict({"scaled": Scaled(3.0, base=5.0), "plain": Plain(3.0)})
    found = computed_buffers(model)
    assert {name: values.tolist() for name, values in found.items()} == {"plain.factor": [21.0, 21.0]}


def test_without_accelerate_modules_without_parameters_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        return None

    monkeypatch.setattr(computed.importlib.util, "find_spec", none)
    assert computed_buffers(built("llama", empty=True)).keys() == unsaved(built("llama")).keys()
    assert computed_buffers(built("bert", empty=True)) == {}


def test_a_model_built_on_the_meta_device_runs_from_its_files(tmp_path: Path) -> None:
    model = built("llama")
    model.save_pretrained(tmp_path / "dense")
    expected = pk.calibrate(model, BATCHES)
    found = pk.calibrate(built("llama", empty=True), BATCHES, weights=tmp_path / "dense")
    assert list(found.sites) == list(expected.sites)
    for name, seen in expected.sites.items():
        assert torch.equal(found.sites[name].moments.variance, seen.moments.variance), name
    options: dict[str, Any] = {"ratio": 0.5, "calibration": BATCHES, "prune_head_dims": True}
    result = pk.prune(built("llama", empty=True), IDS, weights=tmp_path / "dense", **options)
    assert result.plan.cuts
    pk.prune_checkpoint(tmp_path / "dense", tmp_path / "small", result.plan, repaired=result.repaired)
    filled = pk.load(built("llama"), tmp_path / "small")
    made = pk.load(built("llama", empty=True), tmp_path / "small", assign=True)
    assert {name: values.shape for name, values in unsaved(made).items()} == {
        name: values.shape for name, values in unsaved(filled).items()
    }
    with torch.no_grad():
        assert torch.equal(made(**IDS).logits, filled(**IDS).logits)
        assert not torch.equal(made(**IDS).logits, model(**IDS).logits)


def test_what_cant_be_computed_is_missing(tmp_path: Path) -> None:
    model = built("llama")
    model.save_pretrained(tmp_path / "dense")
    empty = built("llama", empty=True)
    del empty.config, empty.model.config, empty.model.rotary_emb.config
    with pytest.raises(pk.CheckpointError, match=r"lacks values that the model runs with(?s:.*)rotary_emb\.inv_freq"):
        pk.calibrate(empty, BATCHES, weights=tmp_path / "dense")

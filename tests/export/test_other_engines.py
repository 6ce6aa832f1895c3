"""Pruned language models in mlx-lm, onnxruntime and transformers: token by token, the same log-probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.export import Comparison, ExportError, export_folder
from prunekit_plugins.export.engines import steps
from prunekit_plugins.export.onnx_decoder import export_in_onnx

transformers = pytest.importorskip("transformers")

from tests.export.agreement import both  # noqa: E402  # needs transformers
from tests.export.folders import IDS, pruned, whole  # noqa: E402  # needs transformers

needs_mlx = pytest.mark.skipif(not (steps.installed("mlx_lm") and steps.installed("mlx")), reason="no mlx-lm")
MLX: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "llama"),
    "qwen2": ("qwen2", {"ignored_layers": ["model.embed_tokens"]}, "qwen2"),
    "qwen3": ("qwen3", {}, "qwen3"),
    "layers that differ": (
        "llama",
        {"ignored_layers": ["model.embed_tokens", "model.layers.1.mlp.gate_proj"], "uniform": False, "round_to": 256},
        "nemotron-nas",
    ),
    "an attention and a feed-forward gone": (
        "llama",
        {
            "branches": ["model.layers.1.self_attn", "model.layers.2.mlp"],
            "ignored_layers": ["model.embed_tokens"],
            "round_to": 256,
        },
        "nemotron-nas",
    ),
}
"""Type of configuration, how it is pruned, and mlx-lm's name of the architecture."""


@pytest.mark.slow
@needs_mlx
@pytest.mark.parametrize("case", MLX)
def test_mlx_computes_what_the_pruned_model_does(case: str, tmp_path: Path) -> None:
    kind, how, architecture = MLX[case]
    big = whole(tmp_path / "big", kind, intermediate_size=512)
    small = pruned(big, tmp_path / "small", **how)
    both(big, small, "mlx")
    config = json.loads((tmp_path / "small-mlx" / "config.json").read_text())
    assert config["model_type"] == architecture
    assert config["rope_theta"] == 10000.0
    assert (tmp_path / "small-mlx" / "tokenizer.json").is_file()


def test_what_mlx_has_no_configuration_for_is_refused(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    layers = {"uniform": False, "ignored_layers": ["model.embed_tokens", "model.layers.1.mlp.gate_proj"]}
    cases = {
        pruned(big, tmp_path / "odd", **layers): "layer 0 has 152 neurons",
        pruned(
            big, tmp_path / "narrow", branches=["model.layers.1.mlp"]
        ): "computes the width of a head from the others",
        pruned(whole(tmp_path / "qwen3", "qwen3"), tmp_path / "mixed", **layers): "of Llama without biases only",
        pruned(whole(tmp_path / "qwen2", "qwen2"), tmp_path / "thin"): "qwen2 computes the width of a head",
    }
    for folder, why in cases.items():
        with pytest.raises(ExportError, match=r"The model can't be exported to MLX; nothing was written\.") as caught:
            export_folder(folder, tmp_path / "x", to="mlx")
        assert why in str(caught.value)
        assert caught.value.hint
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), [("llama", {}), ("qwen3", {"branches": ["model.layers.1.self_attn"]})])
def test_onnx_files_have_free_sizes_and_caches(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    big = whole(tmp_path / "big", kind)
    small = pruned(big, tmp_path / "small", **how)
    both(big, small, "onnx")
    session = runtime.InferenceSession(str(tmp_path / "small-onnx"), providers=["CPUExecutionProvider"])
    layers = [0, 2] if how else [0, 1, 2]
    names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    given = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)]
    assert [one.name for one in session.get_inputs()] == given
    assert [one.name for one in session.get_outputs()] == ["logits", *(f"present.{name}" for name in names)]
    ids = torch.randint(0, 900, (3, 7))
    empty = {name: torch.zeros(3, 2, 0, 16).numpy() for name in given[2:]}
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy(), **empty})
    with torch.no_grad():
        expected = pk.load_folder(small)(input_ids=ids).logits
    torch.testing.assert_close(torch.from_numpy(found[0]), expected)
    assert found[1].shape == (3, 2, 7, 16)


@pytest.mark.slow
def test_mixtures_of_experts_go_to_onnx(tmp_path: Path) -> None:
    """Products of groups of rows have no place there: those of batches of matrices are written, and compared."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = transformers.Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    model.set_experts_implementation("grouped_mm")
    check = export_in_onnx(model, tmp_path, tmp_path / "mixture.onnx")
    assert isinstance(check, steps.EngineCheck)
    assert check.error < 1e-5
    assert model.config._experts_implementation == "grouped_mm"


@pytest.mark.slow
def test_other_models_are_written_to_onnx_for_inputs_of_one_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertModel(config).eval().save_pretrained(str(tmp_path / "bert"))
    check = export_folder(tmp_path / "bert", tmp_path / "bert.onnx", to="onnx").check
    assert isinstance(check, Comparison)
    assert check.error < 1e-5


def test_layers_with_windows_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = whole(tmp_path / "mistral", "mistral", sliding_window=8)
    with pytest.raises(ExportError, match="see a window of the tokens"):
        export_folder(folder, tmp_path / "x.onnx", to="onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_stock_folder_decodes_the_same(tmp_path: Path) -> None:
    big = whole(tmp_path / "big")
    small = pruned(big, tmp_path / "small")
    _, written = both(big, small, "hf")
    assert "transformers" in str(written)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "small-hf"))
    with torch.no_grad():
        assert torch.equal(loaded(**IDS).logits, pk.load_folder(small)(**IDS).logits)
    assert json.loads((tmp_path / "small-hf" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    odd = pruned(big, tmp_path / "odd", branches=["model.layers.1.mlp"])
    with pytest.raises(ExportError, match="no configuration can say its sizes"):
        export_folder(odd, tmp_path / "x", to="hf")
    with pytest.raises(pk.ArgumentError, match="The destination isn't an empty folder"):
        export_folder(small, big, to="hf")
    assert not (tmp_path / "x").exists()


def test_the_comparison_with_an_engine_can_fail(tmp_path: Path) -> None:
    model = pk.load_folder(whole(tmp_path / "big"))
    expected = steps.expected_steps(model)
    assert expected.logs.shape == (11, 910)
    assert expected.logs.exp().sum(-1) == pytest.approx(torch.ones(11))
    assert steps.checked_logs(model, expected, expected.logs + 1e-4, "engine", None).error == pytest.approx(1e-4)
    for wrong in (expected.logs + 2e-3, expected.logs.clone().fill_(float("nan"))):
        with pytest.raises(ExportError, match="computes something else in the engine"):
            steps.checked_logs(model, expected, wrong, "engine", None)
    with pytest.raises(ExportError, match="accepted: 1e-06"):
        steps.checked_logs(model, expected, expected.logs + 1e-5, "engine", 1e-6)
    half = pk.load_folder(tmp_path / "big").bfloat16()
    assert steps.tolerance_of(half, None) == 0.2

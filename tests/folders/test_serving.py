"""Serving profiles: what each engine asks of a model, and plugins that bring one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.plugin import ServingEngine, ServingProfile, hookimpl
from prunekit_plugins.cli.entry import main
from tests.models import small_llama

pytest.importorskip("transformers")

IDS = {"input_ids": torch.tensor([[5, 9, 4, 33, 21, 8]])}
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}


def profile(name: str, model: nn.Module, inputs: Any) -> ServingProfile:
    found: ServingProfile = pk.default_registry().named("prunekit_serving_profiles", name)(model, inputs)
    return found


def test_engines_ask_for_what_they_load() -> None:
    llama = small_llama(**SIZES)
    found = {name: profile(name, llama, IDS) for name in ("transformers", "gguf", "mlx", "onnx")}
    assert {name: one.uniform for name, one in found.items()} == {
        "transformers": True,
        "gguf": True,
        "mlx": True,
        "onnx": False,
    }
    assert {name: one.round_to for name, one in found.items()} == {"transformers": 8, "gguf": 32, "mlx": 32, "onnx": 1}
    assert found["onnx"].head_dims
    assert not found["gguf"].head_dims
    assert len({one.free_outputs for one in found.values()}) == 1
    assert profile("onnx", nn.Linear(2, 2), torch.ones(1, 2)) == ServingProfile()


def test_engines_with_families_refuse_the_others() -> None:
    for name in ("gguf", "mlx"):
        with pytest.raises(pk.ArgumentError, match=f'serve="{name}" is for families') as caught:
            pk.prune(nn.Linear(4, 4), torch.randn(1, 4), serve=name)
        assert "LlamaForCausalLM" in str(caught.value)


def test_all_engines_have_a_version_and_a_load_test() -> None:
    entries = pk.default_registry().entries("prunekit_serving_profiles")
    assert sorted(entries) == ["gguf", "mlx", "onnx", "transformers"]
    for entry in entries.values():
        assert isinstance(entry.value, ServingEngine)
        assert entry.value.version
        assert entry.value.load_test is not None
    with pytest.raises(pk.ArgumentError, match="known: gguf, mlx, onnx, transformers"):
        pk.prune(small_llama(), IDS, serve="onxx")


def registry_with(engine: object) -> pk.Registry:
    entries = {"mine": engine}
    own = SimpleNamespace(one=hookimpl(lambda: entries, specname="prunekit_serving_profiles"))
    return pk.Registry(extra={"own": own})


def test_profiles_that_fail_or_return_something_else_are_told_with_their_plugin() -> None:
    def broken(*given: object) -> ServingProfile:
        raise KeyError("no such chip")

    with pytest.raises(pk.PluginError, match="A serving profile failed") as caught:
        pk.prune(small_llama(), IDS, serve="mine", registry=registry_with(broken))
    assert "serving profile 'mine', from own" in caught.value.where
    with pytest.raises(pk.PluginError, match="A serving profile returned something else"):
        pk.prune(small_llama(), IDS, serve="mine", registry=registry_with(lambda *given: {"uniform": True}))


@pytest.mark.slow
def test_a_load_test_of_a_plugin_is_called_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_llama(**SIZES).save_pretrained(str(tmp_path / "big"))
    (tmp_path / "chip.py").write_text(
        "from prunekit.plugin import ServingEngine, ServingProfile, hookimpl\n"
        "profile = lambda *given: ServingProfile(uniform=True, head_dims=False)\n"
        "@hookimpl\n"
        "def prunekit_serving_profiles():\n"
        "    return {'chip': ServingEngine(profile, '1', lambda folder: f'loaded {folder.name}')}\n"
    )
    arguments = ["prune", f"hf:{tmp_path / 'big'}", "--ratio", "0.3", "--serve", "chip", "--plugin"]
    assert main([*arguments, str(tmp_path / "chip.py"), "--out", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out.endswith("served as chip: loaded small\n")

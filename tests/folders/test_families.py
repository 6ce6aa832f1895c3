"""Every family: one command from a folder to a folder, which the stock class loads; it computes and writes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders.example_inputs import example_inputs
from tests.folders.families import FAMILIES, LLAVA, Family
from tests.vocabulary.training import byte_level

transformers = pytest.importorskip("transformers")

PROMPT = torch.tensor([[5, 9, 4, 33, 71, 8]])


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [tensor for tensor in model(**inputs).to_tuple() if isinstance(tensor, torch.Tensor)]


def texts(model: Any, main_input: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if "input_ids" in inputs and "pixel_values" in inputs:
        start = inputs
    else:
        start = {main_input: inputs[main_input]} if main_input != "input_ids" else {"input_ids": PROMPT}
    made: torch.Tensor = model.generate(**start, max_new_tokens=8, do_sample=False, min_new_tokens=8)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_command_leads_from_folder_to_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    model = family.build()
    model.save_pretrained(str(tmp_path / "big"))
    arguments = ["prune", f"hf:{tmp_path / 'big'}", "--target", "params=0.7", "--out", str(tmp_path / "small")]
    assert main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert f'loaded again with {family.made}.from_pretrained("{tmp_path / "small"}")' in printed

    loaded = getattr(transformers, family.made).from_pretrained(str(tmp_path / "small")).eval()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, loaded))
    assert 0.55 * before < after <= 0.7 * before

    inputs = example_inputs(model)
    pruned = pk.Plan.load(tmp_path / "small" / "prunekit_plan.json").apply(model)  # the cut made by itself
    for expected, found in zip(outputs(pruned, inputs), outputs(loaded, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    if family.main:
        told = texts(loaded, family.main, inputs)
        assert torch.equal(told, texts(pruned, family.main, inputs))
        assert told.shape[1] >= 8
        assert loaded.config.is_encoder_decoder or len(set(told[0].tolist())) > 3


@pytest.mark.slow
def test_a_smaller_model_of_pictures_and_words_reads_what_the_processor_in_its_folder_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = pytest.importorskip("PIL.Image")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    mark = tokenizer.convert_tokens_to_ids("<image>")
    words = {**LLAVA["text_config"], "vocab_size": len(tokenizer)}
    config = {**LLAVA, "text_config": words, "image_token_index": mark}
    attrs.evolve(FAMILIES["llava"], config=config).build().save_pretrained(str(tmp_path / "big"))
    made = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_convert_rgb=True
    )
    processor = transformers.LlavaProcessor(made, tokenizer, patch_size=8, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    processor.save_pretrained(str(tmp_path / "big"))
    arguments = ["prune", f"hf:{tmp_path / 'big'}", "--target", "params=0.8", "--out", str(tmp_path / "small")]
    assert main(arguments) == 0, capsys.readouterr().err

    red = pictures.new("RGB", (40, 30), (200, 10, 10))
    found = [
        transformers.AutoProcessor.from_pretrained(str(tmp_path / name))(
            images=red, text="The class <image> of", return_tensors="pt"
        )
        for name in ("big", "small")
    ]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0)
    assert int((found[1]["input_ids"] == mark).sum()) == 4
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(str(tmp_path / "small"))
    told = loaded.generate(**found[1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert told.shape[1] == found[1]["input_ids"].shape[1] + 4


def deep(name: str) -> Family:
    """A model of a family with layers enough to lose some."""
    if name == "gpt2":
        return Family("gpt2", "GPT2LMHeadModel", {"vocab_size": 96, "n_embd": 64, "n_layer": 4, "n_head": 4})
    family = FAMILIES[name]
    more = {"num_layers": 4, "num_decoder_layers": 4} if name == "t5" else {"num_hidden_layers": 4}
    return attrs.evolve(family, config={**family.config, **more})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "t5"])
def test_by_depth_whole_layers_go_and_the_stock_class_loads_what_is_left(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = deep(name)
    model = family.build()
    model.save_pretrained(str(tmp_path / "big"))
    arguments = ["prune", f"hf:{tmp_path / 'big'}", "--target", "params=0.8", "--by", "depth"]
    assert main([*arguments, "--out", str(tmp_path / "small")]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert f'loaded again with {family.made}.from_pretrained("{tmp_path / "small"}")' in printed
    loaded = getattr(transformers, family.made).from_pretrained(str(tmp_path / "small")).eval()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, loaded))
    assert 0.5 * before < after <= 0.8 * before
    inputs = example_inputs(model)
    plan = pk.Plan.load(tmp_path / "small" / "prunekit_plan.json")
    assert not plan.cuts
    pruned = plan.apply(model)
    for expected, found in zip(outputs(pruned, inputs), outputs(loaded, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert torch.equal(texts(loaded, family.main, inputs), texts(pruned, family.main, inputs))
    assert main([*arguments, "--no-uniform", "--out", str(tmp_path / "single")]) == 0
    assert "from_pretrained can't load it" in capsys.readouterr().out

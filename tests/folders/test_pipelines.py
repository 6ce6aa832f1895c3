"""Folders of diffusers: a pipeline in, the same pipeline out with one component smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit as pk
from prunekit_plugins.cli.entry import main
from prunekit_plugins.folders.of_diffusers import example_inputs

diffusers = pytest.importorskip("diffusers", reason="needs prunekit[diffusers]")

LEVELS: dict[str, Any] = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (16, 32)}
IMAGES: dict[str, Any] = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "attention_head_dim": 8}


def unet() -> Any:
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(**LEVELS, **IMAGES, down_block_types=down, up_block_types=up).eval()


def conditioned() -> Any:
    torch.manual_seed(0)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = {**LEVELS, **IMAGES, "cross_attention_dim": 24}
    return diffusers.UNet2DConditionModel(**sizes, down_block_types=down, up_block_types=up).eval()


def transformer() -> Any:
    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
    sizes: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "patch_size": 2, "num_embeds_ada_norm": 10}
    return diffusers.DiTTransformer2DModel(**heads, **sizes, out_channels=4).eval()


def extra_large() -> Any:
    """Shaped like Stable Diffusion XL's: texts pooled and sizes of pictures come in a mapping."""
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    added: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    sizes = {**LEVELS, **IMAGES, **added, "projection_class_embeddings_input_dim": 6 * 8 + 20}
    return diffusers.UNet2DConditionModel(
        **sizes, cross_attention_dim=24, use_linear_projection=True, down_block_types=down, up_block_types=up
    ).eval()


TEXTS: dict[str, Any] = {"joint_attention_dim": 24, "pooled_projection_dim": 20, "attention_head_dim": 8}


def flux(guided: bool = True) -> Any:
    torch.manual_seed(0)
    layers: dict[str, Any] = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4}
    sizes: dict[str, Any] = {"in_channels": 16, "axes_dims_rope": (2, 2, 4), "guidance_embeds": guided}
    return diffusers.FluxTransformer2DModel(**layers, **sizes, **TEXTS).eval()


def third() -> Any:
    """Shaped like the transformer of Stable Diffusion 3."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 4, "caption_projection_dim": 32}
    sizes: dict[str, Any] = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    return diffusers.SD3Transformer2DModel(**layers, **sizes, **TEXTS).eval()


def autoencoder() -> Any:
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return diffusers.AutoencoderKL(**LEVELS, sample_size=16, down_block_types=down, up_block_types=up).eval()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A pipeline that makes pictures, as it is downloaded."""
    folder = tmp_path / "pictures"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(str(folder))
    (folder / "README.md").write_text("# Pictures\n")
    return folder


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A pipeline with two models: a transformer that takes noise away from latents, and their autoencoder."""
    folder = tmp_path / "latents"
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=20)
    diffusers.DiTPipeline(transformer(), autoencoder(), scheduler).save_pretrained(str(folder))
    return folder


def noise_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**example_inputs(model)).sample
    return found


def test_a_pipeline_goes_in_and_the_same_with_a_smaller_denoiser_comes_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert main(["prune", f"hf:{pictures}", "--target", "params=0.6", "--out", str(small)]) == 0
    printed = capsys.readouterr().out
    opened = f'DiffusionPipeline.from_pretrained("{small}", unet=prunekit.load_folder("{small}"))'
    assert f"loaded again with {opened}: its outputs " in printed
    assert "copied along: model_index.json, scheduler" in printed
    denoiser = pk.load_folder(small)
    held = sum(parameter.numel() for parameter in denoiser.parameters())
    assert held <= 0.6 * sum(parameter.numel() for parameter in unet().parameters())
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(small), unet=denoiser)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    plan = pk.Plan.load(small / "unet/prunekit_plan.json")
    assert torch.allclose(noise_of(plan.apply(unet())), noise_of(denoiser), atol=1e-5)
    card = (small / "README.md").read_text()
    assert opened.replace(str(small), "FOLDER") in card
    assert "What went is in `unet/prunekit_plan.json`." in card
    assert (small / "README_before_pruning.md").read_text() == "# Pictures\n"


def test_sizes_that_a_configuration_can_say_load_with_the_stock_class(latents: Path, tmp_path: Path) -> None:
    model = pk.load_folder(latents, component="vae")
    keep = ["encoder.conv_out", "quant_conv", "post_quant_conv"]
    result = pk.prune(model, example_inputs(model), ratio=0.5, ignored_layers=keep)
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan, source=latents, component="vae")
    assert saved.stock
    assert saved.changed == {"block_out_channels[0]": (16, 8), "block_out_channels[1]": (32, 16)}
    assert saved.opened == f'DiffusionPipeline.from_pretrained("{tmp_path / "small"}")'
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "small"))
    assert torch.allclose(noise_of(pipeline.vae), noise_of(model), atol=1e-5)
    assert torch.allclose(noise_of(pipeline.transformer), noise_of(transformer()), atol=1e-5)
    assert pipeline.vae.config.block_out_channels == [8, 16]


def test_an_autoencoder_keeps_the_latents_of_its_pipeline(latents: Path, tmp_path: Path) -> None:
    model = pk.load_folder(latents, component="vae")
    result = pk.prune(model, example_inputs(model), ratio=0.5)
    with pytest.raises(pk.ArgumentError, match="other latents than the rest of the pipeline"):
        pk.save_folder(model, tmp_path / "small", plan=result.plan, source=latents, component="vae")
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, conditioned, extra_large, transformer, flux, third, autoencoder])
def test_a_model_goes_from_folder_to_folder_and_is_pruned_again(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(str(tmp_path / "big"))
    model = pk.load_folder(tmp_path / "big")
    inputs = example_inputs(model)
    result = pk.prune(model, inputs, target={"macs": 0.6})
    saved = pk.save_folder(model, tmp_path / "small", plan=result.plan, source=tmp_path / "big")
    assert saved.error <= 1e-6
    assert not saved.stock
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        type(model).from_pretrained(str(tmp_path / "small"))
    again = pk.load_folder(tmp_path / "small")
    assert torch.allclose(noise_of(again), noise_of(model), atol=1e-5)
    later = pk.prune(again, inputs, ratio=0.3)
    pk.save_folder(again, tmp_path / "smaller", plan=later.plan, source=tmp_path / "small")
    assert torch.allclose(noise_of(pk.load_folder(tmp_path / "smaller")), noise_of(again), atol=1e-5)


def test_inputs_are_those_that_the_forward_takes() -> None:
    """Sizes by hand, from diffusers' own code: six numbers of framing take an embedding each beside the pooled text."""
    added = example_inputs(extra_large())["added_cond_kwargs"]
    assert {name: tuple(one.shape) for name, one in added.items()} == {"text_embeds": (1, 20), "time_ids": (1, 6)}
    found = example_inputs(flux())
    shapes = {name: tuple(one.shape) for name, one in found.items()}
    assert shapes == {
        "hidden_states": (1, 16, 16),
        "timestep": (1,),
        "encoder_hidden_states": (1, 8, 24),
        "pooled_projections": (1, 20),
        "guidance": (1,),
        "img_ids": (16, 3),
        "txt_ids": (8, 3),
    }
    assert found["img_ids"][6].tolist() == [0, 1, 2]  # the seventh patch of a square of four by four
    assert "guidance" not in example_inputs(flux(guided=False))


def test_inputs_in_a_mapping_reach_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra_large().save_pretrained(str(tmp_path / "big"))
    assert main(["prune", f"hf:{tmp_path / 'big'}", "--target", "macs=0.8", "--out", str(tmp_path / "small")]) == 0
    assert "input 1,1,8,8 and 1:int64 and 1,8,24 and 1,20 and 1,6" in capsys.readouterr().out
    plan = pk.Plan.load(tmp_path / "small/prunekit_plan.json")
    assert torch.allclose(noise_of(plan.apply(extra_large())), noise_of(pk.load_folder(tmp_path / "small")), atol=1e-5)


def test_weights_keep_their_dtype(tmp_path: Path) -> None:
    unet().to(torch.bfloat16).save_pretrained(str(tmp_path / "big"))
    assert {p.dtype for p in pk.load_folder(tmp_path / "big").parameters()} == {torch.bfloat16}


def test_a_component_is_named_where_it_is_not_clear(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(pk.load_folder(latents), diffusers.DiTTransformer2DModel)
    with pytest.raises(pk.ArgumentError, match="no such component") as unknown:
        pk.load_folder(latents, component="unet")
    assert unknown.value.why == "got 'unet'; it has transformer, vae"
    with pytest.raises(pk.ArgumentError, match="holds no pipeline"):
        pk.load_folder(latents / "vae", component="vae")
    (latents / "transformer" / "config.json").unlink()
    with pytest.raises(pk.ArgumentError, match="component that is meant isn't clear"):
        pk.load_folder(latents)
    with pytest.raises(pk.ArgumentError, match="A component is one of a pipeline"):
        pk.save_folder(autoencoder(), tmp_path / "small", plan=pk.Plan(), component="vae")
    out = str(tmp_path / "small")
    assert main(["prune", f"hf:{latents}", "--component", "prior", "--out", out]) == 2
    assert "no such component" in capsys.readouterr().err
    assert main(["prune", "torchvision:resnet18", "--component", "unet"]) == 2
    assert "--component is for pipelines" in capsys.readouterr().err
    assert main(["prune", f"hf:{latents}", "--component", "vae", "--save-recipe", str(tmp_path / "r.toml")]) == 2
    assert "--component doesn't go with recipes" in capsys.readouterr().err


def test_a_component_is_pruned_by_name(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = [part for name in ("encoder.conv_out", "quant_conv", "post_quant_conv") for part in ("--ignore", name)]
    options = ("--component", "vae", "--ratio", "0.5", *keep, "--out", str(tmp_path / "small"), "--json")
    assert main(["prune", f"hf:{latents}", *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folder"]["stock"] is True
    assert data["folder"]["copied"] == ["model_index.json", "scheduler", "transformer"]


def test_folders_that_hold_no_model_of_diffusers_are_refused(pictures: Path) -> None:
    config = pictures / "unet/config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps({**written, "_class_name": "DDPMScheduler"}))
    with pytest.raises(pk.CheckpointError, match="isn't part of diffusers"):
        pk.load_folder(pictures)
    config.write_text(json.dumps({**written, "block_out_channels": [16, 24]}))
    with pytest.raises(pk.CheckpointError, match="can't be read"):
        pk.load_folder(pictures)
    config.write_text("[]")
    with pytest.raises(pk.CheckpointError, match="configuration can't be read"):
        pk.load_folder(pictures)


def test_inputs_that_cannot_be_made_are_told() -> None:
    model = unet()
    model.forward = lambda sample, timestep: 1 / 0
    with pytest.raises(pk.ArgumentError, match="inputs of this model aren't known") as unknown:
        example_inputs(model)
    assert unknown.value.why == "ZeroDivisionError: division by zero"

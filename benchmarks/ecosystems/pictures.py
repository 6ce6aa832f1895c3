"""Networks of pictures and volumes: segmentation_models_pytorch, MONAI, ultralytics, kornia and vit-pytorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

Built = tuple[Any, ...]


def picture(size: int = 64, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, size, size)


def segmenter(name: str, encoder: str = "resnet18", size: int = 64, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        library = importlib.import_module("segmentation_models_pytorch")
        made = getattr(library, name)(encoder_name=encoder, encoder_weights=None, classes=4, **options)
        return made, picture(size)

    return build


SEGMENTERS = {
    "Unet": segmenter("Unet"),
    "Unet-scse": segmenter("Unet", decoder_attention_type="scse"),
    "Unet-mobilenet": segmenter("Unet", "mobilenet_v2"),
    "Unet-efficientnet": segmenter("Unet", "efficientnet-b0"),
    "Unet-mit": segmenter("Unet", "mit_b0"),
    "Unet-timm": segmenter("Unet", "tu-convnext_atto"),
    "UnetPlusPlus": segmenter("UnetPlusPlus"),
    "MAnet": segmenter("MAnet"),
    "Linknet": segmenter("Linknet"),
    "FPN": segmenter("FPN"),
    "PSPNet": segmenter("PSPNet"),
    "PAN": segmenter("PAN", size=128),
    "DeepLabV3": segmenter("DeepLabV3"),
    "DeepLabV3Plus": segmenter("DeepLabV3Plus"),
    "UPerNet": segmenter("UPerNet"),
    "Segformer": segmenter("Segformer", "mit_b0"),
    "DPT": segmenter("DPT", "tu-vit_tiny_patch16_224", dynamic_img_size=True),
}


def refused(build: Callable[[], Built], why: str) -> Callable[[], Built]:
    """A model that is rightly refused."""
    return lambda: (*build()[:2], {"refused": why})


def lit(build: Callable[[], Built]) -> Callable[[], Built]:
    """A model whose last ReLU, with random weights, puts out nothing but zeros."""

    def built() -> Built:
        model, inputs = build()[:2]
        with torch.no_grad():
            model.last_conv[0].bias.add_(1.0)
        return model, inputs

    return built


def net(name: str, inputs: Callable[[], Any], **options: Any) -> Callable[[], Built]:
    return lambda: (getattr(importlib.import_module("monai.networks.nets"), name)(**options), inputs())


def volume(size: int = 32, channels: int = 1) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, channels, size, size, size)


def flat(size: int = 32, channels: int = 1) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, channels, size, size)


MEDICAL = {
    "UNet": net("UNet", flat(), spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2),
                num_res_units=1),
    "UNet-3d": net("UNet", volume(16), spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,)),
    "AttentionUnet": net("AttentionUnet", flat(), spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32),
                         strides=(2, 2)),
    "BasicUNet": net("BasicUNet", flat(), spatial_dims=2, in_channels=1, out_channels=3,
                     features=(8, 8, 16, 16, 32, 8)),
    "BasicUNetPlusPlus": net("BasicUNetPlusPlus", flat(), spatial_dims=2, in_channels=1, out_channels=3,
                             features=(8, 8, 16, 16, 32, 8)),
    "DynUNet": net("DynUNet", flat(), spatial_dims=2, in_channels=1, out_channels=3, kernel_size=[3, 3, 3],
                   strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32]),
    "SegResNet": net("SegResNet", flat(), spatial_dims=2, init_filters=8, in_channels=1, out_channels=3),
    "SegResNetDS": net("SegResNetDS", flat(), spatial_dims=2, init_filters=8, in_channels=1, out_channels=3,
                       blocks_down=(1, 1, 1)),
    "SegResNetVAE": net("SegResNetVAE", flat(32), spatial_dims=2, input_image_size=(32, 32), init_filters=8,
                        in_channels=1, out_channels=3),
    "VNet": net("VNet", volume(32), spatial_dims=3, in_channels=1, out_channels=2),
    "HighResNet": net("HighResNet", flat(16), spatial_dims=2, in_channels=1, out_channels=3),
    "UNETR": net("UNETR", flat(), in_channels=1, out_channels=3, img_size=(32, 32), feature_size=8, hidden_size=32,
                 mlp_dim=48, num_heads=2, spatial_dims=2),
    "SwinUNETR": net("SwinUNETR", flat(64), in_channels=1, out_channels=3, feature_size=12, spatial_dims=2,
                     depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
    "ViT": net("ViT", flat(), in_channels=1, img_size=(32, 32), patch_size=(8, 8), hidden_size=32, mlp_dim=48,
               num_layers=2, num_heads=2, spatial_dims=2, classification=True),
    "ViTAutoEnc": net("ViTAutoEnc", flat(), in_channels=1, img_size=(32, 32), patch_size=(4, 4), hidden_size=32,
                      mlp_dim=48, num_layers=2, num_heads=2, spatial_dims=2),
    "DenseNet": net("DenseNet", flat(), spatial_dims=2, in_channels=1, out_channels=3, init_features=8, growth_rate=4,
                    block_config=(2, 2)),
    "SEResNet50": net("SEResNet50", flat(), spatial_dims=2, in_channels=1, num_classes=3),
    "ResNet-3d": net("ResNet", volume(16), block="basic", layers=[1, 1, 1, 1], block_inplanes=[8, 16, 32, 32],
                     spatial_dims=3, n_input_channels=1, num_classes=3),
    "EfficientNetBN": net("EfficientNetBN", flat(), model_name="efficientnet-b0", pretrained=False, spatial_dims=2,
                          in_channels=1, num_classes=3),
    "RegUNet": net("RegUNet", flat(), spatial_dims=2, in_channels=1, num_channel_initial=8, depth=2),
    "AutoEncoder": net("AutoEncoder", flat(), spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16),
                       strides=(2, 2)),
    "VarAutoEncoder": net("VarAutoEncoder", flat(), spatial_dims=2, in_shape=(1, 32, 32), out_channels=1,
                          latent_size=6, channels=(8, 16), strides=(2, 2)),
    "AutoencoderKL": net("AutoencoderKL", flat(), spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=(1, 1),
                         channels=(16, 32), attention_levels=(False, True), latent_channels=4, norm_num_groups=8),
    "VQVAE": net("VQVAE", flat(), spatial_dims=2, in_channels=1, out_channels=1, channels=(16, 16),
                 num_res_channels=(16, 16), num_res_layers=1, embedding_dim=8, num_embeddings=16,
                 downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2),
    "DiffusionModelUNet": net(
        "DiffusionModelUNet", lambda: (torch.randn(2, 1, 16, 16), torch.tensor([3, 5]), torch.randn(2, 5, 12)),
        spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=(1, 1), channels=(16, 32), norm_num_groups=8,
        attention_levels=(False, True), num_head_channels=8, with_conditioning=True, cross_attention_dim=12,
    ),
    "Generator": net("Generator", lambda: torch.randn(2, 8), latent_shape=(8,), start_shape=(8, 4, 4),
                     channels=(16, 8, 1), strides=(2, 2, 1)),
    "PatchDiscriminator": refused(
        net("PatchDiscriminator", flat(), spatial_dims=2, channels=8, in_channels=1, num_layers_d=2),
        "initial_conv.conv.weight[0]: an output of the model",  # it returns what every layer computes
    ),
    "MedNeXt": net("MedNeXt", flat(32), spatial_dims=2, init_filters=8, in_channels=1, out_channels=3,
                   encoder_expansion_ratio=2, decoder_expansion_ratio=2, blocks_down=(1, 1), blocks_bottleneck=1,
                   blocks_up=(1, 1)),
    "MILModel": net("MILModel", lambda: torch.randn(2, 3, 3, 64, 64), num_classes=3, mil_mode="att", pretrained=False,
                    backbone="resnet18"),
    "QuickNAT": net("Quicknat", flat(32), num_classes=3, num_channels=1, num_filters=8),
    "VoxelMorph": net("VoxelMorphUNet", flat(32, 2), spatial_dims=2, in_channels=2, unet_out_channels=4,
                      channels=(8, 8, 8, 8, 8, 8), final_conv_channels=(8,)),
}  # fmt: skip


def yolo(config: str, size: int = 64, *, width: float = 0.125, count: int = 2) -> Callable[[], Built]:
    """A model of ultralytics by its configuration, at an eighth of its width; what it decodes follows its values."""

    def build() -> Built:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        values = tasks.yaml_model_load(config)
        scales = values.get("scales") or {"n": [0.33, width, 256]}
        smallest = next(iter(scales))
        values["scales"] = {smallest: [scales[smallest][0], width, 512]}
        values["scale"] = smallest
        kind = tasks.guess_model_task(values)
        special = {"rtdetr": "RTDETRDetectionModel", "world": "WorldModel"}
        name = next((special[part] for part in special if part in config), None)
        name = name or {"detect": "DetectionModel", "segment": "SegmentationModel", "pose": "PoseModel",
                        "obb": "OBBModel", "classify": "ClassificationModel"}[kind]  # fmt: skip
        made = getattr(tasks, name)(values, ch=3, verbose=False)
        return made, torch.rand(count, 3, size, size)

    return build


DETECTORS = {
    **{name: yolo(f"{name}.yaml") for name in (
        *("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-ghost", "yolov8n-seg", "yolov8n-pose"),
        "yolov8n-obb",
        *("yolov8n-cls", "yolov10n", "yolo11n", "yolo11n-seg", "yolo11n-cls", "yolo26n"),
    )},
    "yolo12n": yolo("yolo12n.yaml", width=0.25),
    "yolov9t": yolo("yolov9t.yaml"),
    "yolov8-rtdetr": yolo("yolov8-rtdetr.yaml"),
}  # fmt: skip


def kornia(path: str, name: str, inputs: Callable[[], Any], **options: Any) -> Callable[[], Built]:
    return lambda: (getattr(importlib.import_module(f"kornia.{path}"), name)(**options), inputs())


KORNIA = {
    "VisionTransformer": kornia("models.vit", "VisionTransformer", picture_of := lambda: picture(32), image_size=32,
                                patch_size=8, embed_dim=32, depth=2, num_heads=2),
    "MobileViT": kornia("models.vit_mobile", "MobileViT", lambda: picture(64), mode="xxs"),
    "TinyViT": kornia("models.tiny_vit", "TinyViT", lambda: picture(64), img_size=64, num_classes=5,
                      embed_dims=[16, 32, 32, 64], depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4],
                      window_sizes=[4, 4, 4, 2]),
    "HardNet": kornia("feature", "HardNet", lambda: picture(32, 4, 1), pretrained=False),
    "HardNet8": kornia("feature", "HardNet8", lambda: picture(32, 4, 1), pretrained=False),
    "HyNet": kornia("feature", "HyNet", lambda: picture(32, 4, 1), pretrained=False),
    "TFeat": kornia("feature", "TFeat", lambda: picture(32, 4, 1), pretrained=False),
    "SOSNet": kornia("feature", "SOSNet", lambda: picture(32, 4, 1), pretrained=False),
    "DISK-unet": kornia("feature.disk._unets", "Unet", picture_of, in_features=3, down=[8, 16, 16], up=[8, 9]),
    "DexiNed": kornia("models.dexined", "DexiNed", lambda: picture(64, 1), pretrained=False),
    "KeyNet": lit(kornia("feature", "KeyNet", lambda: picture(32, 2, 1), pretrained=False)),
    "DefMO": kornia("feature", "DeFMO", lambda: picture(64, 1, 6), pretrained=False),
}  # fmt: skip


def lucid(module: str, name: str, inputs: Callable[[], Any], **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        library = importlib.import_module(f"vit_pytorch.{module}" if module else "vit_pytorch")
        return getattr(library, name)(**options), inputs()

    return build


VIT = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
TRANSFORMERS = {
    "ViT": lucid("", "ViT", picture_of, **VIT, dim_head=16),
    "SimpleViT": lucid("", "SimpleViT", picture_of, **VIT, dim_head=16),
    "CaiT": lucid("cait", "CaiT", picture_of, **VIT, cls_depth=1, dim_head=16),
    "DeepViT": lucid("deepvit", "DeepViT", picture_of, **VIT, dim_head=16),
    "T2TViT": lucid("t2t", "T2TViT", picture_of, image_size=32, num_classes=5, dim=32, depth=1, heads=2, mlp_dim=48,
                    t2t_layers=((7, 4), (3, 2))),
    "CCT": lucid("cct", "CCT", picture_of, img_size=32, embedding_dim=32, n_conv_layers=1, num_layers=2, num_heads=2,
                 mlp_ratio=2, num_classes=5, positional_embedding="learnable"),
    "LeViT": lucid("levit", "LeViT", lambda: picture(64), image_size=64, num_classes=5, stages=2, dim=(32, 48),
                   depth=1, heads=(2, 3), mlp_mult=2),
    "CvT": lucid("cvt", "CvT", picture_of, num_classes=5, s1_emb_dim=16, s1_heads=1, s1_depth=1, s2_emb_dim=24,
                 s2_heads=1, s2_depth=1, s3_emb_dim=32, s3_heads=2, s3_depth=1),
    "CrossFormer": lucid("crossformer", "CrossFormer", lambda: picture(64), num_classes=5, dim=(32, 32, 64, 64),
                         depth=(1, 1, 1, 1), global_window_size=(8, 4, 2, 1), local_window_size=(4, 4, 4, 2)),
    "MaxViT": lucid("max_vit", "MaxViT", lambda: picture(64), num_classes=5, dim_conv_stem=16, dim=16, dim_head=8,
                    depth=(1, 1), window_size=4, mbconv_expansion_rate=2, mbconv_shrinkage_rate=0.25),
    "NesT": lucid("nest", "NesT", picture_of, image_size=32, patch_size=4, dim=16, heads=2, num_hierarchies=2,
                  block_repeats=(1, 1), num_classes=5),
    "MobileViT": lucid("mobile_vit", "MobileViT", lambda: picture(64), image_size=(64, 64), dims=[16, 24, 32],
                       channels=[8, 8, 16, 16, 24, 24, 32, 32, 48, 48, 64], num_classes=5),
    "XCiT": lucid("xcit", "XCiT", picture_of, **VIT, cls_depth=1),
    "RegionViT": lucid("regionvit", "RegionViT", lambda: picture(64), dim=(16, 16, 32, 32), depth=(1, 1, 1, 1),
                       window_size=2, num_classes=5),
}  # fmt: skip

MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "segmentation_models_pytorch": SEGMENTERS,
    "monai": MEDICAL,
    "ultralytics": DETECTORS,
    "kornia": KORNIA,
    "vit_pytorch": TRANSFORMERS,
}

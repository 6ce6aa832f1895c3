"""Networks around a network: self-supervised learners (lightly, byol-pytorch), agents (stable-baselines3), modules of
dictionaries (tensordict), adapters (peft) and converted programs (onnx2torch)."""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Built = tuple[Any, ...]


def picture(size: int = 16, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, size, size)


def trunk() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


# -- lightly


class Learner(nn.Module):
    """A backbone, a projection head and, where there is one, a prediction head, on two views."""

    def __init__(self, heads: Callable[[Any], list[nn.Module]]) -> None:
        super().__init__()
        self.backbone = trunk()
        self.heads = nn.Sequential(*heads(importlib.import_module("lightly.models.modules.heads")))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.heads(self.backbone(left)), self.heads(self.backbone(right))


class Momentum(nn.Module):
    """BYOL as lightly's documentation writes it: an online network and a copy that follows it."""

    def __init__(self) -> None:
        super().__init__()
        heads = importlib.import_module("lightly.models.modules.heads")
        utils = importlib.import_module("lightly.models.utils")
        self.backbone, self.projection = trunk(), heads.BYOLProjectionHead(24, 32, 16)
        self.prediction = heads.BYOLPredictionHead(16, 32, 16)
        self.backbone_momentum, self.projection_momentum = copy.deepcopy(self.backbone), copy.deepcopy(self.projection)
        utils.deactivate_requires_grad(self.backbone_momentum)
        utils.deactivate_requires_grad(self.projection_momentum)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        online = self.prediction(self.projection(self.backbone(left)))
        with torch.no_grad():
            target = self.projection_momentum(self.backbone_momentum(right))
        return online, target.detach()


def learner(heads: Callable[[Any], list[nn.Module]]) -> Callable[[], Built]:
    def build() -> Built:
        model, views = Learner(heads), (picture(), picture())
        with torch.no_grad():
            model(
                *views
            )  # a weight that is computed anew in each forward has no gradients after this one: it can be copied
        return model, views

    return build


LIGHTLY = {
    "SimCLR": learner(lambda h: [h.SimCLRProjectionHead(24, 32, 16)]),
    "SimSiam": learner(lambda h: [h.SimSiamProjectionHead(24, 32, 16), h.SimSiamPredictionHead(16, 8, 16)]),
    "BarlowTwins": learner(lambda h: [h.BarlowTwinsProjectionHead(24, 32, 16)]),
    "VICReg": learner(lambda h: [h.VICRegProjectionHead(24, 32, 16)]),
    "MoCo": learner(lambda h: [h.MoCoProjectionHead(24, 32, 16)]),
    "NNCLR": learner(lambda h: [h.NNCLRProjectionHead(24, 32, 16), h.NNCLRPredictionHead(16, 32, 16)]),
    "DINO": learner(lambda h: [h.DINOProjectionHead(24, 32, 16, 40)]),
    "SwaV": learner(lambda h: [h.SwaVProjectionHead(24, 32, 16), h.SwaVPrototypes(16, 20)]),
    "MSN": learner(lambda h: [h.MSNProjectionHead(24, 32, 16)]),
    "BYOL": lambda: (Momentum(), (picture(), picture())),
}

# -- byol-pytorch


def byol(*, momentum: bool = True, sync: bool = False) -> Callable[[], Built]:
    """A network that learns from two augmented views; with momentum, from a copy of itself that follows it."""

    def build() -> Built:
        library = importlib.import_module("byol_pytorch")
        made = library.BYOL(
            trunk(), image_size=16, hidden_layer=-1, projection_size=16, projection_hidden_size=32,
            augment_fn=nn.Identity(), augment_fn2=nn.Identity(), use_momentum=momentum, sync_batchnorm=False,
            use_simplicial_embeddings=False,
        )  # fmt: skip
        return made, (picture(),)

    return build


# -- stable-baselines3


def agent(policy: str, space: str = "box", **options: Any) -> Callable[[], Built]:
    """A policy without its environment: what it does is drawn at random, so it is asked for the mode."""

    def build() -> Built:
        spaces = importlib.import_module("gymnasium").spaces
        module, name = policy.rsplit(".", 1)
        kind = getattr(importlib.import_module(f"stable_baselines3.{module}"), name)
        numpy = importlib.import_module("numpy")
        sees = {
            "box": spaces.Box(-1.0, 1.0, (6,)),
            "picture": spaces.Box(0, 255, (3, 36, 36), numpy.uint8),
        }[space]
        does = spaces.Discrete(3) if "dqn" in module else spaces.Box(-1.0, 1.0, (2,))
        given = (sees, does, lambda _: 1e-3)
        made = kind(*given, **options)
        seen = torch.randn(4, 6) if space == "box" else torch.randint(0, 255, (4, 3, 36, 36)).float()
        return made, (seen, True)

    return build


AGENTS = {
    "ActorCritic": agent("common.policies.ActorCriticPolicy", net_arch=[24, 16]),
    "ActorCritic-separate": agent("common.policies.ActorCriticPolicy", net_arch={"pi": [24], "vf": [32, 16]}),
    "ActorCriticCnn": agent("common.policies.ActorCriticCnnPolicy", "picture", net_arch=[16]),
    "DQN": agent("dqn.policies.DQNPolicy", net_arch=[24, 16]),
    "DQNCnn": agent("dqn.policies.CnnPolicy", "picture", net_arch=[16]),
    "SAC": agent("sac.policies.SACPolicy", net_arch=[24, 16]),
    "TD3": agent("td3.policies.TD3Policy", net_arch=[24, 16]),
}

# -- tensordict


def dictionary(kind: str) -> Callable[[], Built]:
    def build() -> Built:
        nets = importlib.import_module("tensordict.nn")
        tensordict = importlib.import_module("tensordict")
        first = nets.TensorDictModule(nn.Linear(6, 24), in_keys=["seen"], out_keys=["hidden"])
        second = nets.TensorDictModule(
            nn.Sequential(nn.ReLU(), nn.Linear(24, 3)), in_keys=["hidden"], out_keys=["done"]
        )
        if kind == "parameters":
            return WithParameters(), torch.randn(4, 6)
        if kind == "probabilistic":
            split = nets.TensorDictModule(
                nn.Sequential(nn.ReLU(), nn.Linear(24, 4), nets.NormalParamExtractor()), in_keys=["hidden"],
                out_keys=["loc", "scale"],
            )  # fmt: skip
            made = nets.TensorDictSequential(first, split)
            return Keyed(made, ["loc", "scale"]), torch.randn(4, 6)
        made = nets.TensorDictSequential(first, second)
        if kind == "keyed":
            return Keyed(made, ["done"]), torch.randn(4, 6)
        if kind == "sequential":  # what a module of dictionaries writes, it returns
            given = (tensordict.TensorDict({"seen": torch.randn(4, 6)}, [4]),)
            return made, given, {"refused": "an output of the model: hidden"}
        if kind == "selected":
            made = nets.TensorDictSequential(first, second, selected_out_keys=["done"])
        return made, (tensordict.TensorDict({"seen": torch.randn(4, 6)}, [4]),)

    return build


class Keyed(nn.Module):
    """A module of dictionaries that is given a tensor and asked for some of what it writes."""

    def __init__(self, inner: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self.inner, self.keys = inner, keys

    def forward(self, seen: torch.Tensor) -> list[torch.Tensor]:
        tensordict = importlib.import_module("tensordict")
        found = self.inner(tensordict.TensorDict({"seen": seen}, [len(seen)]))
        return [found[key] for key in self.keys]


class WithParameters(nn.Module):
    """Parameters that are kept in a `TensorDictParams`."""

    def __init__(self) -> None:
        super().__init__()
        library = importlib.import_module("tensordict")
        nets = importlib.import_module("tensordict.nn")
        values = library.TensorDict({"first": torch.randn(24, 6), "second": torch.randn(3, 24)}, [])
        self.kept = nets.TensorDictParams(values)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(seen, self.kept["first"]).relu(), self.kept["second"])


TENSORDICT = {kind: dictionary(kind) for kind in ("sequential", "selected", "keyed", "probabilistic", "parameters")}

# -- peft


def llama() -> nn.Module:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def adapter(config: str, *, merged: bool = False, words: bool = True, **options: Any) -> Callable[[], Built]:
    """A language model with adapters, or with them merged into its weights."""

    def build() -> Built:
        peft = importlib.import_module("peft")
        model = peft.get_peft_model(llama(), getattr(peft, config)(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name or "vera_" in name:
                nn.init.normal_(parameter, std=0.1)
        if merged:
            model = model.merge_and_unload().requires_grad_(True)
        return model, {"input_ids": torch.randint(0, 96, (2, 9)), "use_cache": False}

    return build


TARGETS = {"target_modules": ["q_proj", "v_proj", "up_proj"]}
PEFT = {
    "LoRA": adapter("LoraConfig", r=4, **TARGETS),
    "LoRA-all": adapter("LoraConfig", r=4, target_modules="all-linear"),
    "LoRA-rs": adapter("LoraConfig", r=4, use_rslora=True, **TARGETS),
    "LoRA-merged": adapter("LoraConfig", merged=True, r=4, **TARGETS),
    "DoRA": adapter("LoraConfig", r=4, use_dora=True, **TARGETS),
    "DoRA-merged": adapter("LoraConfig", merged=True, r=4, use_dora=True, **TARGETS),
    "AdaLoRA": adapter("AdaLoraConfig", init_r=4, total_step=10, **TARGETS),
    "LoHa": adapter("LoHaConfig", r=4, **TARGETS),
    "LoKr": adapter("LoKrConfig", r=4, **TARGETS),
    "IA3": adapter("IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": adapter("VeraConfig", r=4, target_modules=["gate_proj", "up_proj"]),
    "OFT": adapter("OFTConfig", r=0, oft_block_size=4, target_modules=["q_proj", "v_proj"]),
    "BOFT": adapter("BOFTConfig", boft_block_size=4, target_modules=["q_proj", "v_proj"]),
    "prefix": adapter("PrefixTuningConfig", num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prompt": adapter("PromptTuningConfig", num_virtual_tokens=4, task_type="CAUSAL_LM"),
}

# -- onnx2torch


def converted(make: Callable[[], nn.Module], inputs: Callable[[], torch.Tensor]) -> Callable[[], Built]:
    """A model exported to ONNX and converted back: its weights are named after the graph's tensors."""

    def build() -> Built:
        onnx = importlib.import_module("onnx")
        library = importlib.import_module("onnx2torch")
        model, example, file = make().eval(), inputs(), io.BytesIO()
        keep = torch.onnx.TrainingMode.PRESERVE  # else batch norms are folded into what is before them
        torch.onnx.export(model, (example,), file, dynamo=False, opset_version=13, training=keep)
        file.seek(0)
        return library.convert(onnx.load(file)), example

    return build


class Attention(nn.Module):
    """Attention written with matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.stem(x)).split(32, dim=-1)
        return self.out(torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, dim=-1) @ v)


class Product(nn.Module):
    """A product with a matrix that is no layer's weight: it becomes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix, self.last = nn.Linear(6, 16), nn.Parameter(torch.randn(16, 24)), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(x).relu() @ self.matrix).relu())


def small() -> nn.Module:
    return nn.Sequential(trunk(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))


def resnet() -> nn.Module:
    return importlib.import_module("torchvision.models").resnet18(num_classes=5)


def mobile() -> nn.Module:
    return importlib.import_module("torchvision.models").mobilenet_v2(num_classes=5, width_mult=0.25)


ONNX = {
    "convolutions": converted(small, picture),
    "perceptron": converted(
        lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), lambda: torch.randn(4, 6)
    ),
    "matrix": converted(Product, lambda: torch.randn(4, 6)),
    "attention": converted(Attention, lambda: torch.randn(2, 7, 8)),
    "resnet18": converted(resnet, lambda: picture(32, 2)),
    "mobilenet_v2": converted(mobile, lambda: picture(32, 2)),
    "normed": converted(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)),
        lambda: torch.randn(4, 6),
    ),
}

MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "lightly": LIGHTLY,
    "byol_pytorch": {"BYOL": byol(), "BYOL-simsiam": byol(momentum=False)},
    "stable_baselines3": AGENTS,
    "tensordict": TENSORDICT,
    "peft": PEFT,
    "onnx2torch": ONNX,
}

"""What is left without some branches is an ordinary model: copied, pickled, exported, compiled."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import prunekit as pk
from tests.core.residual import MODELS, close, switched_off


def stored(model: nn.Module, x: torch.Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def strictly_loaded(model: nn.Module, x: torch.Tensor) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    return other


def exported(model: nn.Module, x: torch.Tensor) -> Any:
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), file)
    file.seek(0)
    return torch.export.load(file).module()


SHIPPED: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "copied": lambda model, x: copy.deepcopy(model),
    "pickled": lambda model, x: pickle.loads(pickle.dumps(model)),
    "stored": stored,
    "loaded": strictly_loaded,
    "exported": exported,
    "compiled": lambda model, x: torch.compile(model, backend="eager", fullgraph=True),
}


def vision_transformer() -> tuple[nn.Module, torch.Tensor]:
    """torchvision's: its attention returns a tuple, of which one part is None."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    model = torchvision.models.VisionTransformer(**sizes, num_classes=3).double().eval()
    nn.init.normal_(model.heads.head.weight)
    return model, torch.randn(2, 3, 16, 16).double()


LAYER = "encoder.layers.encoder_layer_0"
ALL = [*MODELS, (vision_transformer, {f"{LAYER}.self_attention": f"{LAYER}.dropout", f"{LAYER}.mlp": f"{LAYER}.mlp"})]


@pytest.mark.parametrize("way", SHIPPED)
@pytest.mark.parametrize(("make", "branches"), ALL)
def test_it_goes_wherever_models_go(make: Any, branches: dict[str, str], way: str) -> None:
    model, x = make()
    expected = switched_off(model, *branches.values())(x)
    small = pk.Graph.of(model, x).plan_without(branches).apply(model)
    assert close(small(x), expected)
    assert close(SHIPPED[way](small, x)(x), expected)


@pytest.mark.parametrize(("make", "branches"), ALL)
def test_nothing_is_computed_for_what_is_gone(make: Any, branches: dict[str, str]) -> None:
    """The exported program has the operations of the one with the branch switched off that lead to the result."""
    model, x = make()
    plan = pk.Graph.of(model, x).plan_without(branches)
    small = plan.apply(copy.deepcopy(model))
    names = [node.name for node in torch.export.export(small, (x,)).graph.nodes if node.op == "call_function"]
    whole = [node.name for node in torch.export.export(model, (x,)).graph.nodes if node.op == "call_function"]
    costly = ("linear", "conv", "layer_norm", "batch_norm", "scaled_dot")
    count = [sum(name.startswith(costly) for name in found) for found in (names, whole)]
    gone = {name.rpartition(".")[0] for name in set(dict(model.named_parameters())) & set(plan.gone)}
    assert count[0] < count[1]
    assert count[1] - count[0] >= len(gone)


def test_a_model_that_another_process_reads_needs_the_library_only_for_what_stands_in() -> None:
    model, x = MODELS[0][0]()
    graph = pk.Graph.of(model, x)
    plans = [graph.plan_without(["blocks.0.up"], keep_names=keep) for keep in (False, True)]
    short, same = (plan.apply(copy.deepcopy(model)) for plan in plans)
    used = {type(module).__module__ for module in short.modules()}
    assert used == {"torch.nn.modules.container", "torch.nn.modules.linear", "torch.nn.modules.normalization",
                    "tests.core.test_branches"}  # fmt: skip
    assert {type(module).__module__ for module in same.modules()} == {*used, "prunekit_core.modules.absent"}
    assert [*same.state_dict()] == [name for name in model.state_dict() if not name.startswith("blocks.0.")]
    assert torch.equal(short(x), same(x))

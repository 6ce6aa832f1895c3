"""Models that can't be pruned as they are: the reason is the true one, and says what to do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

import prunekit as pk

X = torch.randn(2, 8)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def refusal(model: object) -> pk.UnsupportedModelError:
    with pytest.raises(pk.UnsupportedModelError) as caught:
        pk.prune(model, X)  # type: ignore[arg-type]
    return caught.value


class Packed(nn.Parameter):
    """A parameter whose numbers are codes, as libraries for four and eight bits make them."""


class Wrapped(torch.Tensor):
    """A tensor that is made of others."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise AssertionError(f"{func} ran")


def coded(model: nn.Sequential) -> nn.Sequential:
    model[0].weight = Packed(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    return model


def wrapped(model: nn.Sequential) -> nn.Sequential:
    model[0].weight = nn.Parameter(Wrapped(torch.zeros(16, 8, dtype=torch.int8)), requires_grad=False)
    return model


def quantised_buffer(model: nn.Sequential) -> nn.Sequential:
    model.register_buffer("table", torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8))
    return model


def test_weights_that_a_library_will_quantise_are_named() -> None:
    """Such layers hold real numbers until they are moved, and can't run before."""
    kind = type("Int8Params", (nn.Parameter,), {"__module__": "bitsandbytes.nn.modules"})
    model = net()
    model[0].weight = kind(model[0].weight.detach())
    error = refusal(model)
    assert error.headline == "The model's weights are quantised or packed."
    assert error.where == "0.weight"
    assert error.why.startswith("it is a Int8Params of bitsandbytes, which quantises it once it is moved")
    assert "before it is quantised" in error.hint


@pytest.mark.parametrize(("make", "where"), [(coded, "0.weight"), (wrapped, "0.weight"), (quantised_buffer, "table")])
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantised_weights_are_named(make, where) -> None:  # type: ignore[no-untyped-def]
    error = refusal(make(net()))
    assert error.headline == "The model's weights are quantised or packed."
    assert error.where == where
    assert "before it is quantised" in error.hint


def test_weights_in_packed_objects_are_named() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("PyTorch was built without quantised kernels")
    with pytest.warns(DeprecationWarning, match="quantiz"):
        model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    error = refusal(model)
    assert error.headline == "The model's weights are quantised or packed."
    assert error.where.startswith("0.")


def test_integers_that_are_no_codes_are_no_reason() -> None:
    model = net()
    model.register_parameter("places", nn.Parameter(torch.arange(4), requires_grad=False))
    model.register_buffer("mask", torch.ones(4, dtype=torch.bool))
    assert pk.prune(model, X).report.pruned == {"0": (16, 8)}


@pytest.mark.parametrize("make", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.randn(3, 16))])
@pytest.mark.filterwarnings("ignore:.*jit.*")
def test_one_scripted_module_inside_is_named(make) -> None:  # type: ignore[no-untyped-def]
    model = net()
    model[2] = make(model[2])
    error = refusal(model)
    assert error.headline == "A ScriptModule can't be pruned."
    assert error.where == "2"


def test_an_exported_program_has_a_module() -> None:
    exported = torch.export.export(net(), (X,))
    assert refusal(exported).hint == "pass its .module(), which is one"
    module = exported.module()
    report = pk.prune(module, X).report
    assert report.pruned == {"0": (16, 8)}
    assert module(X).shape == (2, 4)


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    handle, path = tempfile.mkstemp()
    os.close(handle)
    os.unlink(path)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("alone")
def test_modules_that_shard_their_parameters_are_named(original: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = net()
    model[0] = FullyShardedDataParallel(model[0], use_orig_params=original, device_id=torch.device("cpu"))
    error = refusal(model)
    assert error.headline == "The model is sharded over several processes."
    assert error.where == "0"


class Cached(nn.Module):
    """A model that hands its keys back."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        key = self.key(x)
        return {"scores": self.out(key.relu()), "cache": [key]}


def test_outputs_that_pin_are_told_by_their_names() -> None:
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune(Cached(), X)
    assert "cache (3 parameter dims)" in caught.value.hint
    assert "free_outputs" in caught.value.hint
    assert pk.prune(Cached(), X, free_outputs=["cache"]).report.pruned == {"key": (16, 8)}


def test_a_target_out_of_reach_tells_of_outputs_that_pin() -> None:
    model = Cached()
    model.free = nn.Linear(4, 4)  # type: ignore[assignment]
    model.add = nn.Linear(4, 4)  # type: ignore[assignment]

    def run(model: nn.Module, x: torch.Tensor) -> dict[str, object]:
        found = model(x)
        found["scores"] = model.add(model.free(found["scores"]).relu())
        return found

    with pytest.raises(pk.ArgumentError, match="can't be reached") as caught:
        pk.prune(model, X, target={"params": 0.1}, forward_fn=run)
    assert "cache (3 parameter dims)" in caught.value.hint
    assert "the report says what the program pins" in caught.value.hint

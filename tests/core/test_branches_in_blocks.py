"""Blocks that go on with what stands behind their sum: a relu, a norm, the projection beside a branch."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_core.modules.absent import Absent, Called, Given, Handed, Item, Several, from_json, to_json
from tests.core.test_branches_removed import double, without

IMAGE = torch.randn(2, 3, 8, 8)
X = torch.randn(2, 5, 8)


class Block(nn.Module):
    """A ResNet's, with one relu for all places, in place."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None if width == out else nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 1), nn.Sequential(Block(4, 6), Block(6, 6), Block(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x))


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return model.double().eval()


X_ARGUMENT = Handed(Given("x", 0))


def test_without_its_branch_a_block_is_its_projection_and_its_relu(net: Any) -> None:
    x = IMAGE.double()
    plan, small = without(net, x, ["blocks.0.conv1"])
    inner = Called("shortcut", ((Given("input", 0), X_ARGUMENT),))
    assert [(stub.module, stub.result) for stub in plan.stubs] == [
        ("blocks.0", Called("relu", ((Given("input", 0), inner),)))
    ]
    assert torch.equal(small(x), net.blocks[1:](net.blocks[0].shortcut(net.stem(x)).relu()))
    assert pk.check_exact(net, small, plan, x)
    left = [name for name in net.state_dict() if not name.startswith(("blocks.0.conv", "blocks.0.norm"))]
    assert list(small.state_dict()) == left
    assert str(small.blocks[0]).startswith("Absent(\n  relu(shortcut(x))")


def test_without_its_projection_a_block_is_its_layers_one_after_the_other(net: Any) -> None:
    x = IMAGE.double()
    plan, small = without(net, x, ["blocks.0.shortcut"])
    block = net.blocks[0]
    chain = block.norm2(block.conv2(block.norm1(block.conv1(net.stem(x))).relu())).relu()
    torch.testing.assert_close(small(x), net.blocks[1:](chain), rtol=0, atol=1e-12)
    assert pk.check_exact(net, small, plan, x)
    assert [name for name, _ in small.blocks[0].named_children()] == ["conv1", "norm1", "relu", "conv2", "norm2"]


def test_all_that_is_left_of_a_block_may_be_its_relu(net: Any) -> None:
    x = IMAGE.double()
    plan, small = without(net, x, ["blocks.1.conv1", "blocks.2.conv1"])
    assert torch.equal(small(x), net.blocks[0](net.stem(x)))
    assert pk.check_exact(net, small, plan, x)
    assert len(list(small.blocks[1].parameters())) == 0
    assert plan.preview().params_after == sum(p.numel() for p in small.parameters())


def test_modules_that_stay_keep_their_mode_and_their_widths(net: Any) -> None:
    x = IMAGE.double()
    net.blocks[0].train()
    net.blocks[0].norm1.eval()  # frozen
    plan, small = without(net, x, ["blocks.0.shortcut"], kept={"blocks.0.conv1": (0, 2, 3)})
    assert small.blocks[0].conv1.weight.shape == (3, 4, 3, 3)
    assert small.blocks[0].norm1.training is False
    assert small.blocks[0].norm2.training is True
    assert pk.check_exact(net, small, plan, x)


class ReadAgain(nn.Module):
    """What the block is given is read again, so that its relu mustn't write there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 1), Block(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.stem(x)
        return self.block(start), start.mean((2, 3))


class GivenInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.block(x)
        return value


@pytest.mark.parametrize(("kind", "channels"), [(ReadAgain, 3), (GivenInput, 6)])
def test_a_relu_in_place_does_not_write_to_what_is_read_again(kind: Any, channels: int) -> None:
    """Zeros are added then, as the sum makes a tensor of its own."""
    torch.manual_seed(0)
    model, x = double(kind(), torch.randn(2, channels, 8, 8))
    model.block.conv1 = nn.Conv2d(6, 6, 3, padding=1).double()  # type: ignore[union-attr]
    model.block.norm1, model.block.conv2 = nn.BatchNorm2d(6).double(), nn.Conv2d(6, 6, 3, padding=1).double()  # type: ignore[union-attr]
    model.eval()
    plan, small = without(model, x, ["block.conv1"])
    assert {stub.module for stub in plan.stubs} == {"block.conv1", "block.norm1", "block.conv2", "block.norm2"}
    before = x.clone()
    assert pk.check_exact(model, small, plan, x)
    small(x)
    assert torch.equal(x, before)


class Output(nn.Module):
    """A BERT's: its norm follows the sum, in the module that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.norm(self.dense(hidden) + x)
        return value


class PostNormLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.output = nn.Linear(8, 16), Output()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.output(self.up(x).relu(), x=x)
        return value


def test_a_norm_behind_the_sum_reads_what_is_left() -> None:
    torch.manual_seed(0)
    model, x = double(nn.Sequential(nn.Linear(8, 8), PostNormLayer(), PostNormLayer()), X)
    nn.init.normal_(model[1].output.norm.weight)  # type: ignore[index, union-attr, arg-type]
    plan, small = without(model, x, ["1.up"])
    norm = Called("norm", ((Given("input", 0), Handed(Given("x", 1))),))
    assert {stub.module: stub.result for stub in plan.stubs}["1.output"] == norm
    assert torch.equal(small(x), model[2](model[1].output.norm(model[0](x))))  # type: ignore[index, union-attr, operator]
    assert pk.check_exact(model, small, plan, x)
    assert not {"1.output.norm.weight", "1.output.norm.bias"} & set(plan.gone)


def test_a_module_that_computes_something_itself_is_not_expressed() -> None:
    class Scales(Output):
        def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.dense(hidden) + x) * 2

    model, x = double(nn.Sequential(nn.Linear(8, 8), PostNormLayer()), X)
    model[1].output = Scales().double()  # type: ignore[index]
    plan, small = without(model, x, ["1.up"])
    assert {stub.module for stub in plan.stubs} == {"1.up", "1.output.dense"}
    assert pk.check_exact(model, small, plan, x)


def test_what_is_called_is_data_and_is_checked(net: Any) -> None:
    x = IMAGE.double()
    plan, _ = without(net, x, ["blocks.0.conv1"])
    for wrong, message in (
        ("nothing", "it has no such module in it"),
        ("", "not what a module returns"),
        ("relu..relu", "not what a module returns"),
        ("__class__", "it has no such module in it"),
    ):
        text = plan.to_json().replace('"shortcut"', json.dumps(wrong))
        with pytest.raises(pk.PlanError, match=message):
            pk.Plan.from_json(text).apply(copy.deepcopy(net))
    for data in ({"module": ["relu", [["x", 0, 1]]]}, {"module": ["relu", 3]}, {"item": [{"value": 1}, 0]}):
        with pytest.raises(pk.PlanError, match="is not what a module returns"):
            from_json(data)
    with pytest.raises(pk.PlanError, match="is no argument"):
        from_json({"module": ["relu", [["", -1, {"value": 1}]]]})


def test_each_module_is_called_once_on_the_same() -> None:
    calls: list[tuple[Any, ...]] = []

    class Two(nn.Module):
        def forward(self, a: torch.Tensor, *, b: float) -> tuple[torch.Tensor, float]:
            calls.append((a, b))
            return a * b, b

    outer = nn.Module()
    outer.add_module("inner", nn.ModuleList([Two()]))
    two = Called("inner.0", ((Given("a", 0), Handed(Given("x", 0))), (Given("b", -1), from_json({"value": 3.0}))))
    result = Several((Item(two, 1), Item(two, 0)))
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    module = Absent(result, outer)
    factor, made = module(torch.ones(2))
    assert (factor, made.tolist(), len(calls)) == (3.0, [3.0, 3.0], 1)
    assert str(module).startswith("Absent(\n  (inner.0(x, 3.0)[1], inner.0(x, 3.0)[0])")

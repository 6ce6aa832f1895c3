"""What is relied on when fake tensors are made by copying the first one of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import prunekit as pk
from prunekit_core.program.calls import bind_arguments
from prunekit_core.record.fakes import Fakes, ShapeHandling

CPU = torch.device("cpu")
DEVICES = ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA"))]


def metas() -> list[torch.Tensor]:
    strided = torch.empty_strided((3, 4), (1, 3), dtype=torch.float16, device="meta")
    return [torch.empty(2, 3, device="meta"), strided, torch.empty((), dtype=torch.long, device="meta")]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_copied_fakes_are_like_constructed_ones(device: str, inference: bool) -> None:
    mode, place = FakeTensorMode(), torch.device(device)
    fakes = Fakes(mode)
    with torch.inference_mode(inference):
        first = fakes.make(torch.empty(1, device="meta"), place)
        first._is_param = True  # what is done to one later must not show in others
        for meta in metas():
            made, constructed = fakes.make(meta, place), FakeTensor(mode, meta, place)
            assert vars(made) == vars(constructed)
            assert type(made) is type(constructed) is FakeTensor
            assert made.device == constructed.device
            assert (made.shape, made.stride(), made.dtype) == (meta.shape, meta.stride(), meta.dtype)
            assert made.is_inference() == constructed.is_inference()
            assert torch._C._dispatch_keys(made) == torch._C._dispatch_keys(constructed)
    made = fakes.make(metas()[0], place)
    with mode:
        result = made @ torch.ones(3, 5, device=place)
    assert isinstance(result, FakeTensor)
    assert (result.shape, result.device) == (torch.Size([2, 5]), first.device)


def test_copied_fakes_give_no_memory_away() -> None:
    mode = FakeTensorMode()
    mode._allow_unsafe_data_ptr_access = False
    fakes = Fakes(mode)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="data pointer"):
            fakes.make(torch.empty(2, device="meta"), torch.device("cpu")).data_ptr()


def lacking(*_: Any) -> Any:
    raise AttributeError("another version of PyTorch")


def other(*_: Any) -> Any:
    return FakeTensor(FakeTensorMode(), torch.empty(1, device="meta"), CPU)


@pytest.mark.parametrize("copied", [lacking, other])
def test_where_copies_are_made_otherwise_the_constructor_is_called(
    monkeypatch: pytest.MonkeyPatch, copied: Callable[..., Any]
) -> None:
    """Another version of PyTorch may lack what copies need, or have constructors that set more."""
    mode = FakeTensorMode()
    monkeypatch.setattr("prunekit_core.record.fakes.copy_of_fake", copied)
    fakes = Fakes(mode)
    for meta in metas():
        fake = fakes.make(meta, CPU)
        assert (fake.shape, fake.dtype, fake.fake_mode) == (meta.shape, meta.dtype, mode)


def laid_out() -> dict[str, torch.Tensor]:
    whole = torch.empty(2, 3, 4, 5, device="meta")
    return {
        "contiguous": whole,
        "channels last": whole.to(memory_format=torch.channels_last),
        "permuted": torch.empty(3, 4, 5, 2, device="meta").permute(3, 0, 1, 2),
        "expanded": torch.empty_strided((2, 3, 4, 5), (0, 20, 5, 1), device="meta"),
        "with gaps": torch.empty(2, 3, 4, 10, device="meta")[..., ::2],
        "half": torch.empty(2, 3, 4, 5, dtype=torch.float16, device="meta"),
    }


ATEN = torch.ops.aten
OPERATIONS: list[tuple[Any, Callable[[torch.Tensor], tuple[Any, ...]]]] = [
    (ATEN.relu.default, lambda tensor: (tensor,)),
    (ATEN.silu.default, lambda tensor: (tensor,)),
    (ATEN.add.Tensor, lambda tensor: (tensor, tensor)),
    (ATEN.mul.Tensor, lambda tensor: (tensor, 2)),
    (ATEN.add.Tensor, lambda tensor: (tensor, tensor[0])),
    (ATEN.add.Tensor, lambda tensor: (tensor[1], tensor)),
    (ATEN.mul.Tensor, lambda tensor: (tensor[:, :1], tensor[:1, :, :, :1])),
    (ATEN.mul.Tensor, lambda tensor: (tensor[0, 0, :, :1], tensor[0, 0, 0])),
    (ATEN.sub.Tensor, lambda tensor: (tensor[0, 0, 0], tensor[..., :1])),
    (ATEN.softmax.int, lambda tensor: (tensor, -1)),
    (ATEN.clone.default, lambda tensor: (tensor,)),
    (ATEN.native_dropout.default, lambda tensor: (tensor, 0.1, False)),
    (ATEN.transpose.int, lambda tensor: (tensor, 1, 2)),
    (ATEN.mean.dim, lambda tensor: (tensor, [2, 3], True)),
    (ATEN.relu_.default, lambda tensor: (tensor,)),
    (ATEN.mul.Tensor, lambda tensor: (tensor, 2j)),
    (ATEN.cat.default, lambda tensor: ([tensor, tensor], 1)),
    (ATEN.cat.default, lambda tensor: ([tensor, tensor, tensor], -1)),
    (ATEN.cat.default, lambda tensor: ([tensor[..., 2:], tensor[..., :2]], -1)),
    (ATEN.cat.default, lambda tensor: ([tensor[:, 1:], tensor.relu()], 1)),
    (ATEN.cat.default, lambda tensor: ([tensor[0, :, ::2], tensor[1]], 1)),
    (ATEN.max_pool2d.default, lambda tensor: (tensor, [2])),
    (ATEN.max_pool2d.default, lambda tensor: (tensor, [3, 2], [2, 1], [1, 1], [1, 2])),
    (ATEN.max_pool2d.default, lambda tensor: (tensor, [3], [2], [1], [1], True)),
    (ATEN.avg_pool2d.default, lambda tensor: (tensor, [2], [], [0], True)),
    (ATEN.avg_pool2d.default, lambda tensor: (tensor, [3], [1], [1])),
    (ATEN.avg_pool1d.default, lambda tensor: (tensor[0], [2], [3], [1])),
    (ATEN.avg_pool3d.default, lambda tensor: (tensor, [2, 1, 2])),
    (ATEN.stack.default, lambda tensor: ([tensor, tensor], 1)),
    (ATEN.stack.default, lambda tensor: ([tensor[0], tensor[1], tensor[0]], -1)),
    (ATEN.mean.dim, lambda tensor: (tensor, [1])),
    (ATEN.mean.default, lambda tensor: (tensor,)),
    (ATEN.sum.dim_IntList, lambda tensor: (tensor, None, True)),
    (ATEN.sum.dim_IntList, lambda tensor: (tensor, [-1, 0], False)),
    (ATEN.to.dtype, lambda tensor: (tensor, torch.float16)),
    (ATEN.to.dtype, lambda tensor: (tensor, torch.float32)),
    (ATEN.to.dtype, lambda tensor: (tensor, torch.int64, False, True, torch.channels_last)),
    (ATEN.neg.default, lambda tensor: (tensor,)),
    (ATEN.cos.default, lambda tensor: (tensor,)),
    (ATEN.pow.Tensor_Scalar, lambda tensor: (tensor, 2)),
    (ATEN.pow.Tensor_Scalar, lambda tensor: (tensor, 2j)),
    (ATEN.upsample_nearest2d.vec, lambda tensor: (tensor, None, [2.0, 1.5])),
    (ATEN.upsample_nearest2d.vec, lambda tensor: (tensor[:, 1:], [7, 3], None)),
    (ATEN.upsample_bilinear2d.vec, lambda tensor: (tensor, [3, 9], False, None)),
    (ATEN.upsample_bicubic2d.default, lambda tensor: (tensor, [3, 9], True)),
    (ATEN.upsample_linear1d.vec, lambda tensor: (tensor[0], None, True, [0.7])),
    (ATEN.log_softmax.int, lambda tensor: (tensor, 1)),
    (ATEN.softmax.int, lambda tensor: (tensor, 1, torch.float64)),
    (ATEN.group_norm.default, lambda tensor: (tensor, 3)),
    (ATEN.instance_norm.default, lambda tensor: (tensor, *[None] * 4, True, 0.1, 1e-5, False)),
    (ATEN.rms_norm.default, lambda tensor: (tensor, [tensor.shape[-1]])),
]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("layout", laid_out())
@pytest.mark.parametrize(("op", "arguments"), OPERATIONS, ids=[str(op) for op, _ in OPERATIONS])
def test_results_are_those_of_the_fake_mode(
    op: Any, arguments: Callable[[torch.Tensor], tuple[Any, ...]], layout: str
) -> None:
    rules, mode = pk.default_registry().op_rules, FakeTensorMode()
    fakes = Fakes(mode)
    args = arguments(fakes.make(laid_out()[layout], CPU))
    handling = ShapeHandling.of(op, rules)
    with torch.inference_mode(), mode:
        found = [fakes.result(op, handling, bind_arguments(op, args, {}), args, {}) for _ in range(2)]
        expected = op(*args)
    for result in found:  # the second one may be a remembered one
        for a, b in zip(
            *(value if isinstance(value, tuple) else (value,) for value in (result, expected)), strict=True
        ):
            assert type(a) is FakeTensor
            assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


INTEGERS: list[tuple[Any, torch.dtype, Any]] = [
    (ATEN.add_.Tensor, torch.int64, 1),
    (ATEN.add.Tensor, torch.int32, 1),
    (ATEN.add.Tensor, torch.int64, 0.5),
    (ATEN.mul.Tensor, torch.uint8, 300),
    (ATEN.add.Tensor, torch.bool, 1),
    (ATEN.sub.Tensor, torch.int8, True),
    (ATEN.mul.Tensor, torch.float16, 2),
    (ATEN.mul.Tensor, torch.complex64, 2),
]


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(("op", "dtype", "number"), INTEGERS)
def test_dtypes_are_those_of_the_fake_mode(op: Any, dtype: torch.dtype, number: Any, shape: tuple[int, ...]) -> None:
    rules, mode = pk.default_registry().op_rules, FakeTensorMode()
    fakes = Fakes(mode)
    args = (fakes.make(torch.empty(shape, dtype=dtype, device="meta"), CPU), number)
    with torch.inference_mode(), mode:
        found = fakes.result(op, ShapeHandling.of(op, rules), bind_arguments(op, args, {}), args, {})
        expected = op(*args)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


MISFITS: list[tuple[Any, tuple[Any, ...]]] = [
    (ATEN.cat.default, ([(2, 3), (2, 4)], 0)),
    (ATEN.cat.default, ([(2, 3), (2, 3, 1)], 0)),
    (ATEN.cat.default, ([(2, 3), (2, 3)], 2)),
    (ATEN.max_pool2d.default, ((1, 2, 4, 4), [2], [2], [2])),
    (ATEN.max_pool2d.default, ((1, 2, 1, 1), [2])),
    (ATEN.avg_pool2d.default, ((2, 4), [2])),
    (ATEN.stack.default, ([(2, 3), (2, 4)], 0)),
    (ATEN.stack.default, ([(2, 3), (2, 3)], 3)),
    (ATEN.mean.dim, ((2, 3), [2])),
    (ATEN.sum.dim_IntList, ((2, 3), [1, -1])),
]


@pytest.mark.parametrize(("op", "shapes"), MISFITS)
def test_what_does_not_fit_is_refused(op: Any, shapes: tuple[Any, ...]) -> None:
    rules, mode = pk.default_registry().op_rules, FakeTensorMode()
    fakes = Fakes(mode)

    def fake(shape: tuple[int, ...]) -> torch.Tensor:
        return fakes.make(torch.empty(shape, device="meta"), CPU)

    first = [fake(shape) for shape in shapes[0]] if isinstance(shapes[0], list) else fake(shapes[0])
    args = (first, *shapes[1:])
    with torch.inference_mode(), mode, pytest.raises((RuntimeError, IndexError)):
        fakes.result(op, ShapeHandling.of(op, rules), bind_arguments(op, args, {}), args, {})


def queries() -> dict[str, torch.Tensor]:
    packed = torch.randn(2, 5, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    return {
        "contiguous": packed[:, :, 0].transpose(1, 2).contiguous(),
        "transposed": packed[:, :, 0].contiguous().transpose(1, 2),
        "packed": packed.permute(2, 0, 3, 1, 4)[0],
        "double": packed.double().permute(2, 0, 3, 1, 4)[1],
        "half precision": packed.bfloat16().permute(2, 0, 3, 1, 4)[1],
    }


@pytest.mark.parametrize("layout", queries())
@pytest.mark.parametrize("mask", [None, "causal", "bool"])
def test_attention_lies_as_the_kernels_of_this_machine_write_it(layout: str, mask: str | None) -> None:
    query, op = queries()[layout], ATEN.scaled_dot_product_attention.default
    masks = {None: None, "causal": torch.zeros(5, 5, dtype=query.dtype), "bool": torch.ones(5, 1, dtype=torch.bool)}
    rules, mode = pk.default_registry().op_rules, FakeTensorMode()
    args = (query, query, query, masks[mask])
    stand_ins = tuple(None if tensor is None else mode.from_tensor(tensor) for tensor in args)
    with torch.inference_mode():
        expected = op(*args)
        with mode:
            arguments = bind_arguments(op, stand_ins, {})
            found = Fakes(mode).result(op, ShapeHandling.of(op, rules), arguments, stand_ins, {})
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


FACTORIES: list[tuple[Any, tuple[Any, ...]]] = [
    (ATEN.zeros.default, ([2, 3],)),
    (ATEN.arange.start_step, (1, 9, 2)),
    (ATEN.full.default, ([2], 0.5)),
]


@pytest.mark.parametrize(("op", "args"), FACTORIES, ids=[str(op) for op, _ in FACTORIES])
@pytest.mark.parametrize("place", [None, torch.device("cpu"), torch.device("meta")])
def test_what_is_made_of_numbers_is_what_the_fake_mode_makes(
    op: Any, args: tuple[Any, ...], place: torch.device | None
) -> None:
    rules, mode = pk.default_registry().op_rules, FakeTensorMode()
    with torch.inference_mode(), mode:
        arguments = bind_arguments(op, args, {"device": place})
        found = Fakes(mode).result(op, ShapeHandling.of(op, rules), arguments, args, {"device": place})
        expected = op(*args, device=place)
    assert type(found) is type(expected)
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert found.device == expected.device

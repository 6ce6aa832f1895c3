"""Rules of views: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import views
from tests.plugins.ops.cases import case, checks_of

EXCUSED: dict[str, str] = {}

CASES = [
    # view and its relatives
    case("x.view(2, 3, 4)", "a2 (b3*c4) -> a2 b3 c4", x=(2, 12)),
    case("x.view(6, 4)", "a2 (b3*c4) -> (a2*b3) c4", x=(2, 12)),
    case("x.view(-1)", "a2 b12 -> (a2*b12)", x=(2, 12)),
    case("x.view(2, -1, 4)", "a2 (b3*c4) -> a2 b3 c4", x=(2, 12)),
    case("x.view(1, 2, 1, 12)", "a2 b12 -> 1 a2 1 b12", x=(2, 12)),
    case("x.view(2, 3, 4)[0:2].view(2, 12)", "a2 (b3*c4) -> a2 (b3*c4)", x=(2, 12)),
    case("x.view(0, 3)", "0 4! -> 0 3!", x=(0, 4), pins={"x1": "an empty tensor"}),
    case("x.view(5)", "a5 -> a5", x=(5,)),
    case("x.view(())", "1 -> ()", x=(1,)),
    case("x.view(3, 4)", "4! 3! -> 3! 4!", x=(4, 3), gap="doesn't divide"),
    case("x.reshape(2, 12)", "a2 b3 c4 -> a2 (b3*c4)", x=(2, 3, 4)),
    case("x.transpose(1, 2).reshape(2, 12)", "a2 b3 c4 -> a2 (c4*b3)", x=(2, 3, 4)),
    case("x.reshape(8, 3)", "a4 (b2*c3) -> (a4*b2) c3", x=(4, 6)),
    case("x.permute(0, 2, 3, 1).reshape(2, 12)", "a2 b3 c2 d2 -> a2 (c2*d2*b3)", x=(2, 3, 2, 2)),
    case("aten._unsafe_view(x, [2, 3, 4])", "a2 (b3*c4) -> a2 b3 c4", x=(2, 12)),
    case("aten._reshape_alias(x, [2, 12], [12, 1])", "a2 b3 c4 -> a2 (b3*c4)", x=(2, 3, 4), unrun="takes strides"),
    case("x.view_as(y)", "a2 (b3*c4), a2 b3 c4 -> a2 b3 c4", x=(2, 12), y=(2, 3, 4)),
    case("x.reshape_as(y)", "a2 (b3*c4), a2 b3 c4 -> a2 b3 c4", x=(2, 12), y=(2, 3, 4)),
    case("x.flatten()", "a2 b3 c4 -> (a2*b3*c4)", x=(2, 3, 4)),
    case("x.flatten(1)", "a2 b3 c4 -> a2 (b3*c4)", x=(2, 3, 4)),
    case("x.flatten(-2)", "a2 b3 c4 -> a2 (b3*c4)", x=(2, 3, 4)),
    case("x.flatten(0, 1)", "a2 b3 c4 -> (a2*b3) c4", x=(2, 3, 4)),
    case("x.unflatten(1, (3, 4))", "a2 (b3*c4) -> a2 b3 c4", x=(2, 12)),
    case("x.unflatten(-1, (3, -1))", "a2 (b3*c4) -> a2 b3 c4", x=(2, 12)),
    case("x.ravel()", "a2 b3 -> (a2*b3)", x=(2, 3)),
    case("x.squeeze()", "a4 1 b3 1 -> a4 b3", x=(4, 1, 3, 1)),
    case("x.squeeze(1)", "a2 1 b3 1 -> a2 b3 1", x=(2, 1, 3, 1)),
    case("x.squeeze(-1)", "a2 1 b3 1 -> a2 1 b3", x=(2, 1, 3, 1)),
    case("x.squeeze(0)", "a3 1 -> a3 1", x=(3, 1)),
    case("x.squeeze((1, 3))", "a4 1 b3 1 -> a4 b3", x=(4, 1, 3, 1)),
    case("x.squeeze_(1)", "a2 1 b3 -> a2 b3", x=(2, 1, 3)),
    case("x.unsqueeze(0)", "a2 b3 -> 1 a2 b3", x=(2, 3)),
    case("x.unsqueeze(-1)", "a2 b3 -> a2 b3 1", x=(2, 3)),
    case("x.unsqueeze_(1)", "a2 b3 -> a2 1 b3", x=(2, 3)),
    case("x.unsqueeze(1)", "0 3! -> 0 1 3!", x=(0, 3)),
    case("x.squeeze(1)", "0 1 3! -> 0 3!", x=(0, 1, 3)),
    case("x.view(torch.int64)", "2! 3! -> 2! 3!", x=(2, 3), gap="another dtype"),
    # channel shuffle, and back
    case(
        "x.view(2, 3, 4, 5).transpose(1, 2).reshape(2, 12, 5)",
        "a2 (b3*c4) d5 -> a2 (c4*b3) d5",
        x=(2, 12, 5),
    ),
    case("x.view(2, 2, 6).view(2, 4, 3)", "a2 (b2*c2*d3) -> a2 (b2*c2) d3", x=(2, 12)),
    # a concat that is read as factors
    case("torch.cat([x, y], 1).view(2, 5, 2)", "a2 (b2*c2), a2 (d3*c2) -> a2 (b2+d3) c2", x=(2, 4), y=(2, 6)),
    # order of dims
    case("x.permute(2, 0, 1)", "a2 b3 c4 -> c4 a2 b3", x=(2, 3, 4)),
    case("x.permute(0, -1, 1)", "a2 b3 c4 -> a2 c4 b3", x=(2, 3, 4)),
    case("x.transpose(1, 2)", "a2 b3 c4 -> a2 c4 b3", x=(2, 3, 4)),
    case("x.transpose(-3, -1)", "a2 b3 c4 -> c4 b3 a2", x=(2, 3, 4)),
    case("x.transpose_(0, 1)", "a2 b3 -> b3 a2", x=(2, 3)),
    case("x.swapaxes(0, 1)", "a2 b3 -> b3 a2", x=(2, 3)),
    case("x.swapdims(-1, 0)", "a2 b3 -> b3 a2", x=(2, 3)),
    case("x.t()", "a2 b3 -> b3 a2", x=(2, 3)),
    case("x.t()", "a3 -> a3", x=(3,)),
    case("x.T", "a2 b3 -> b3 a2", x=(2, 3)),
    case("x.mT", "a2 b3 c4 -> a2 c4 b3", x=(2, 3, 4)),
    case("x.mH", "a2 b3 c4 -> a2 c4 b3", x=(2, 3, 4)),
    case("x.adjoint()", "a2 b3 c4 -> a2 c4 b3", x=(2, 3, 4)),
    case("x.movedim(0, 2)", "a2 b3 c4 -> b3 c4 a2", x=(2, 3, 4)),
    case("x.movedim(-1, 0)", "a2 b3 c4 -> c4 a2 b3", x=(2, 3, 4)),
    case("x.movedim((0, 1), (-1, 0))", "a2 b3 c4 -> b3 c4 a2", x=(2, 3, 4)),
    case("x.moveaxis(1, 0)", "a2 b3 c4 -> b3 a2 c4", x=(2, 3, 4)),
    # copies
    case("x.expand(2, 4, 3)", "a2 1 b3 -> a2 c4 b3", x=(2, 1, 3), says={"x0": "", "x2": ""}),
    case("x.expand(4, -1, 3)", "a2 b3 -> c4 a2 b3", x=(2, 3)),
    case("x.expand(5, 2, -1)", "a2 b3 -> c5 a2 b3", x=(2, 3)),
    case("x.expand_as(y)", "1 a3, b2 a3 -> b2 a3", x=(1, 3), y=(2, 3)),
    case("x.broadcast_to((2, 3))", "a3 -> b2 a3", x=(3,)),
    case("x.expand(3, 1)", "1 -> a3 1", x=(1,)),
    case("x.repeat(1, 3)", "a2 b4 -> a2 (c3*b4)", x=(2, 4)),
    case("x.repeat(3, 1, 1)", "a2 b4 -> c3 a2 b4", x=(2, 4)),
    case("x.tile((2,))", "a2 b4 -> a2 (c2*b4)", x=(2, 4)),
    case("x.tile((2, 1, 1))", "a2 b4 -> c2 a2 b4", x=(2, 4)),
    case("x.repeat_interleave(n)", "2! 3!, 6! -> 12!", x=(2, 3), n=torch.tensor([1, 3, 1, 2, 2, 3]), slow=True),
    case("torch.repeat_interleave(n)", "3! -> 5!", n=torch.tensor([1, 3, 1]), slow=True),
    case("x.repeat_interleave(3, 1)", "a2 b4 -> a2 (b4*c3)", x=(2, 4)),
    case("x.repeat_interleave(3, dim=-1)", "a2 b4 -> a2 (b4*c3)", x=(2, 4)),
    case("x.repeat_interleave(3)", "a2 b4 -> (a2*b4*c3)", x=(2, 4)),
    case(
        "x.repeat_interleave(n, dim=1, output_size=5)",
        "a2 3!, 3! -> a2 5!",
        x=(2, 3),
        n=torch.tensor([1, 3, 1]),
        pins={"x1": "repeated as often as a tensor says"},
    ),
    # grouped-query attention: repeated key heads stand next to each other
    case("x[:, :, None].expand(2, 3, 4, 5).reshape(2, 12, 5)", "a2 b3 c5 -> a2 (b3*d4) c5", x=(2, 3, 5)),
    # pictures
    case(
        "F.pixel_shuffle(x, 2)",
        "a2 (b3*4!) 5! 6! -> a2 b3 10! 12!",
        x=(2, 12, 5, 6),
        pins={"x1": "becomes part of the picture", "x2": "becomes part of the picture"},
    ),
    case("F.pixel_shuffle(x, 2)", "(a3*4!) 5! 6! -> a3 10! 12!", x=(12, 5, 6)),
    case("F.pixel_shuffle(x, 1)", "a3 5! 6! -> a3 5! 6!", x=(3, 5, 6)),
    case("F.pixel_unshuffle(x, 2)", "a2 b3 4! 6! -> a2 (b3*4!) 2! 3!", x=(2, 3, 4, 6), pins={"x3": "a spatial dim"}),
    case("aten.channel_shuffle(x, 2)", "a2 (b2*c3) d4 -> a2 (c3*b2) d4", x=(2, 6, 4)),
    case("torch.view_as_real(torch.view_as_complex(x))", "a2 b3 2! -> a2 b3 2!", x=(2, 3, 2)),
    case("x.unfold(1, 3, 2)", "a2 7! b3 -> a2 3! b3 3!", x=(2, 7, 3), pins={"x1": "windows are read along it"}),
    case("x.diagonal(dim1=0, dim2=2)", "a3 b2 a3 -> b2 a3", x=(3, 2, 3)),
    # a vector on the diagonal: a unit is a row and its column
    case("x.diag_embed()", "a2 b3 -> a2 b3 b3", x=(2, 3)),
    case("x.diag_embed(dim1=0, dim2=2)", "a2 b3 -> b3 a2 b3", x=(2, 3)),
    case("x.diag_embed(1)", "a2 3! -> a2 4! 4!", x=(2, 3), pins={"x1": "a diagonal off the middle"}),
    case("x.trace()", "a3 a3 -> ()", x=(3, 3), says={"x0": "mix"}),
    case("x.trace()", "3! 2! -> ()", x=(3, 2)),
    case("x.resize_(2, 3)", "a2 b3 -> a2 b3", x=(2, 3)),
    case("x.resize_as_(y)", "a2 b3, a2 b3 -> a2 b3", x=(2, 3), y=(2, 3)),
    case("x.resize_(3, 2)", "2! 3! -> 3! 2!", x=(2, 3), gap="resized to another shape"),
    case("x.diagonal(1)", "3! 3! -> 2!", x=(3, 3), pins={"x0": "a diagonal off the middle"}),
    case("x.as_strided((2, 2), (3, 1))", "2! 3! -> 2! 2!", x=(2, 3), gap="a view by strides"),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    views.RULES, CASES, EXCUSED
)

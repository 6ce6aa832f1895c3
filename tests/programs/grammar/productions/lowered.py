"""Operations as exported programs hold them: the names below those that people type."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.productions.book import Book

BOOK = Book("lowered")
ANY = (
    "aten._softmax({v}, -1, False)",
    "aten._log_softmax({v}, -1, False)",
    "aten._safe_softmax({v}, -1)",
    "aten.native_dropout({v}, 0.5, False)[0]",
    "aten._unsafe_view({v}, {v}.shape)",
    "aten._reshape_alias({v}.contiguous(), {v}.shape, {v}.contiguous().stride())",
    "aten.relu6({v})",
    "aten.multiply({v}, 0.5)",
    "aten.glu_jvp(F.glu({v}, -1), {v}, {v}.sin(), -1)",
    "aten._to_copy({v})",
    "aten.soft_margin_loss({v}, {v}.sign(), 0)",
    "torch.where(torch.isnan({v}), 0.0, {v}) if not torch.isnan({v}).any() else {v}",
    "{v}.requires_grad_(False).relu()",
    "{v}.cpu().tanh()",
    "{v} * {v}.abs().max().item()",
    "{v} * torch.tensor([0.5, 0.5])[0]",
    "{v} * torch.tensor(2.0)",
    "aten.norm({v}, 2) + {v}",
    "aten._unique({v}.round(), True, True)[1].double()",
    "aten._index_put_impl_({v}.clone(), [torch.tensor([1, 0])], {v}[:2] * 0.5)",
    "{v} * torch._is_all_true(({v} > -99.0)).double()",
    "{v} * torch._is_any_true(({v} > -99.0)).double()",
    "aten.lift_fresh_copy({v})",
    "aten.clone({v}, memory_format=torch.contiguous_format)",
    "aten.slice({v}, 1, 0, 9223372036854775807, 1)",
    "aten.sum({v}, [-1], True)",
    "aten.mean({v}, [-1], True)",
    "aten.var_mean({v}, [-1], correction=0, keepdim=True)[1]",
    "aten.expand({v}, [-1] * {v}.dim())",
    "aten.squeeze({v}.unsqueeze(0), [0])",
    "aten.full([1], 0.5) * {v}",
    "aten.alias({v})",
    "aten.view({v}.contiguous(), {v}.shape)",
    "aten.amax({v}, [-1], True)",
    "aten.bmm({v}.flatten(1).unsqueeze(1), {v}.flatten(1).unsqueeze(2)).flatten(1)",
    "aten.addcmul({v}, {v}, {v}, value=0.1)",
    "aten.permute({v}, list(range({v}.dim())))",
    "aten.prelu({v}, torch.full((1,), 0.2))",
)


@BOOK.add(1.5)
def anywhere(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    draft.let(draft.pick(ANY).format(v=value).replace("aten.", "torch.ops.aten."))


@BOOK.add(1)
def layers(draft: Draft) -> None:
    """Layers with parameters, lowered."""
    value = draft.take(2, 3, 4)
    last, channels, out = value.shape[-1], value.shape[1], draft.width()
    form = draft.pick(range(14))
    if form == 0:
        text = f"native_layer_norm({value}, [{last}], {draft.parameter(last)}, {draft.parameter(last)}, 1e-05)[0]"
    elif form == 1:
        text = f"_fused_rms_norm({value}, [{last}], {draft.parameter(last)}, 1e-06)[0]"
    elif form == 2:
        mean, var = draft.buffer(channels), draft.layer(f"nn.Parameter(torch.rand({channels}) + 0.5)", "p")
        scale, shift = draft.parameter(channels), draft.parameter(channels)
        text = draft.pick(
            (
                f"native_batch_norm({value}, {scale}, {shift}, {mean}, {var}, False, 0.1, 1e-05)[0]",
                f"_native_batch_norm_legit({value}, {scale}, {shift}, True, 0.1, 1e-05)[0]",
                f"_native_batch_norm_legit_no_training({value}, {scale}, {shift}, {mean}, {var}, 0.1, 1e-05)[0]",
            )
        )
    elif form == 3:
        weight = draft.let(
            f"torch._weight_norm_interface({draft.parameter(out, last)}, {draft.parameter(out, 1)}, 0)[0]"
        )
        draft.let(f"F.linear({value}, {weight})")
        return
    elif form == 4:
        text = f"_prelu_kernel({value}, {draft.parameter(channels, *[1] * (value.ndim - 2))})"
    elif form == 5 and value.ndim == 4:
        theta = draft.parameter(value.shape[0], 2, 3)
        text = f"grid_sampler_2d({value}, F.affine_grid({theta}, {value}.shape, align_corners=False), 0, 0, False)"
    elif form == 6 and value.ndim in (3, 4):
        sides = [1] * (2 * (value.ndim - 2))
        text = f"{draft.pick(('reflection', 'replication'))}_pad{value.ndim - 2}d({value}, {sides})"
    elif form == 7:
        text = f"_cdist_forward({value}, {value}.sin(), 2.0, None)"
    elif form == 8 and value.ndim == 2:
        target = "torch.zeros(2, dtype=torch.int64)"
        text = f"nll_loss_forward({value}.log_softmax(1), {target}, None, 1, -100)[0] + {value}"
    elif form == 9 and value.ndim == 4:
        target = f"torch.zeros({value.shape[0]}, {value.shape[2]}, {value.shape[3]}, dtype=torch.int64)"
        text = f"nll_loss2d_forward({value}.log_softmax(1), {target}, None, 0, -100)[0].unsqueeze(1)"
    elif form == 10:
        offsets = "torch.tensor([0, 2]), False, 0, False, None, False, -1"
        call = draft.pick(("_embedding_bag", "_embedding_bag_forward_only"))
        text = f"{call}({draft.parameter(7, out)}, torch.tensor([0, 3, 2]), {offsets})[0]"
    elif form == 11 and value.ndim == 3:
        lengths = f"torch.tensor([{value.shape[1]}, {max(value.shape[1] - 1, 1)}])"
        text = f"_pack_padded_sequence({value}, {lengths}, True)[0]"
    elif form == 12 and value.ndim == 2:
        bank = draft.parameter(2, last, 8)
        text = (
            f"_grouped_mm({value}.bfloat16(), {bank}.bfloat16(), offs=torch.tensor([1, 2], dtype=torch.int32)).double()"
        )
    else:
        raise NoFitError
    draft.let(f"torch.ops.aten.{text}")


@BOOK.add(0.3)
def volumes(draft: Draft) -> None:
    value = draft.take(5)
    theta = draft.parameter(value.shape[0], 3, 4)
    draft.let(
        draft.pick(
            (
                f"torch.ops.aten.grid_sampler_3d({value}, F.affine_grid({theta}, {value}.shape, align_corners=False), 0, 0, False)",
                f"torch.ops.aten.replication_pad3d({value}, [1] * 6)",
                f"torch.ops.aten.reflection_pad3d({value}, [1] * 6)",
                f"F.conv3d({value}, {draft.parameter(draft.width(), value.shape[1], 3, 3, 3)}, padding='same')",
            )
        )
    )


@BOOK.add(0.3)
def boxes(draft: Draft) -> None:
    """Detection: boxes, scores, and which of them stay."""
    value = draft.take(2)
    corners, score = draft.layer(f"nn.Linear({value.shape[1]}, 4)"), draft.layer(f"nn.Linear({value.shape[1]}, 1)")
    made = draft.let(f"{corners}({value}).abs().cumsum(1)")
    kept = draft.name("i")
    draft.do(f"{kept} = torchvision.ops.nms({made}, {score}({value})[:, 0], 0.9)")
    draft.let(f"{value}[{kept}].sum(0, True)")

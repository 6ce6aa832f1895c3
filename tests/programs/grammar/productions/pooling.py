"""Pooling, padding, resizing and other spatial operations."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.productions.book import Book

BOOK = Book("pooling")


@BOOK.add(2)
def pooled(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    d = value.ndim - 2
    text = draft.pick(
        (
            f"F.avg_pool{d}d({value}, 2, 2, 0, False, True)",
            f"F.max_pool{d}d({value}, 2, 2, 0, 1, False)",
            f"F.avg_pool{d}d({value}, 3, 1, 1)",
            f"F.max_pool{d}d({value}, 3, stride=1, padding=1)",
            f"F.adaptive_avg_pool{d}d({value}, 2)",
            f"F.adaptive_avg_pool{d}d({value}, 1)",
            f"F.adaptive_max_pool{d}d({value}, 2)",
            f"F.max_pool{d}d({value}, 2, return_indices=True)[0]",
            f"F.lp_pool{min(d, 2)}d({value}, 2.0, 2, 1)",
            f"F.adaptive_max_pool{d}d({value}, 2, return_indices=True)[0]",
            f"F.fold(F.unfold({value}, 3, 1, 1, 1), {value}.shape[2:], 3, 1, 1, 1)",
            f"torch.ops.aten._adaptive_avg_pool{max(d, 2)}d({value}, [1] * {d})",
            f"F.unfold({value}, 2, 1, 0, 1)",
        )
    )
    if draft.chance(0.2):
        kind = draft.pick(("AvgPool", "MaxPool", "AdaptiveAvgPool", "LPPool"))
        text = f"{draft.layer(f'nn.{kind}{d}d(2)' if kind != 'LPPool' else f'nn.LPPool{d}d(2.0, 2)')}({value})"
    draft.let(text)


@BOOK.add(1)
def unpooled(draft: Draft) -> None:
    value = draft.take(4, 5)
    d = value.ndim - 2
    one, two = draft.name("v"), draft.name("i")
    made = draft.run(f"{one}, {two} = F.max_pool{d}d({value}, 2, return_indices=True)", one)
    draft.let(f"F.max_unpool{d}d({made}, {two}, 2, output_size={value}.shape[2:])")


@BOOK.add(2)
def padded(draft: Draft) -> None:
    value = draft.take(2, 3, 4, 5)
    if draft.chance(0.5) or value.ndim < 3:
        sides = "(1, 0)" if draft.chance() else "(0, 2)"
        if draft.chance(0.2) and value.ndim > 2:
            sides = "(0, 0, 1, 1)"
        draft.let(
            draft.pick(
                (
                    f"F.pad({value}, {sides})",
                    f"F.pad({value}, {sides}, value=0.5)",
                    f"torch.constant_pad_nd({value}, {sides}, 0.0)",
                )
            )
        )
        return
    mode = draft.pick(("reflect", "replicate", "circular"))
    draft.let(f'F.pad({value}, {"(" + ", ".join(["1"] * (2 * (value.ndim - 2))) + ")"}, mode="{mode}")')


@BOOK.add(2)
def resized(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    d = value.ndim - 2
    modes = {
        1: ("nearest", "linear", "nearest-exact"),
        2: ("nearest", "bilinear", "bicubic", "nearest-exact"),
        3: ("nearest", "trilinear", "nearest-exact"),
    }[d]
    mode = draft.pick(modes)
    extra = ", antialias=True" if mode in ("bilinear", "bicubic") and draft.chance(0.3) else ""
    by = draft.pick(("scale_factor=2.0", "size=3", f"size={value}.shape[2:]", "scale_factor=2"))
    draft.let(f'F.interpolate({value}, {by}, mode="{mode}"{extra})')


@BOOK.add(1)
def sampled(draft: Draft) -> None:
    value = draft.take(4, 5)
    theta = draft.parameter(value.shape[0], value.ndim - 2, value.ndim - 1)
    grid = draft.let(f"F.affine_grid({theta}, {value}.shape, align_corners=False)")
    mode = draft.pick(("bilinear", "nearest"))
    draft.let(f'F.grid_sample({value}, {grid}, mode="{mode}", padding_mode="zeros", align_corners=False)')


@BOOK.add(1)
def windows(draft: Draft) -> None:
    """Shifted windows, patches, and other foldings of space."""
    value = draft.take(4, where=lambda v: v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0)
    b, c, h, w = value.shape
    form = draft.pick(range(3))
    if form == 0:
        parts = draft.let(f"{value}.view({b}, {value}.shape[1], {h // 2}, 2, {w // 2}, 2)")
        draft.let(f"{parts}.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)")
    elif form == 1:
        moved = draft.let(f"torch.roll({value}, (-1, -1), (2, 3))")
        parts = draft.let(f"{moved}.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1)")
        draft.let(f"{parts}.flatten(0, 2).flatten(1, 2).mean(1).unflatten(0, ({b}, -1))")
    else:
        if not c:
            raise NoFitError
        draft.let(f"torch.cat([{value}[:, :, ::2, ::2], {value}[:, :, 1::2, ::2], {value}[..., ::2, 1::2]], 1)")

"""Normalisation of all kinds."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft
from tests.programs.grammar.productions.book import Book

BOOK = Book("norms")


@BOOK.add(3)
def batch(draft: Draft) -> None:
    value = draft.take(2, 3, 4, 5)
    channels = value.shape[1]
    if draft.chance(0.2):
        mean, var = draft.buffer(channels), draft.buffer(channels)
        weight, bias = draft.parameter(channels), draft.parameter(channels)
        draft.let(f"F.batch_norm({value}, {mean}, {var}.abs() + 0.5, {weight}, {bias}, False, 0.1, 1e-05)")
        return
    name = f"BatchNorm{max(value.ndim - 2, 1)}d"
    options = draft.pick(("", "", ", affine=False", ", track_running_stats=False", ", momentum=None"))
    draft.let(f"{draft.layer(f'nn.{name}({channels}{options})')}({value})")


@BOOK.add(1)
def layer(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    dims = draft.pick((1, 1, 1, 2)) if value.ndim > 2 else 1
    shape = list(value.shape[-dims:])
    form = draft.pick(range(5))
    if form == 0:
        weight = draft.parameter(*shape)
        draft.let(f"F.layer_norm({value}, {value}.shape[-{dims}:], {weight}, None, 1e-05)")
    elif form == 1:
        draft.let(f"F.rms_norm({value}, {tuple(shape)}, None, 1e-06)")
    elif form == 2:
        draft.let(f"{draft.layer(f'nn.RMSNorm({shape})')}({value})")
    elif form == 3:
        weight = draft.parameter(shape[-1])
        draft.let(f"{value} * torch.rsqrt({value}.square().mean(-1, keepdim=True) + 1e-05) * {weight}")
    else:
        draft.let(f"{draft.layer(f'nn.LayerNorm({shape}, bias={draft.chance()})')}({value})")


@BOOK.add(1)
def group(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    channels = value.shape[1]
    groups = draft.divisor(channels)
    if draft.chance(0.3):
        weight, bias = draft.parameter(channels), draft.parameter(channels)
        draft.let(f"F.group_norm({value}, {groups}, {weight}, {bias}, 1e-05)")
    else:
        draft.let(f"{draft.layer(f'nn.GroupNorm({groups}, {channels}, affine={draft.chance(0.8)})')}({value})")


@BOOK.add(1)
def instance(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    channels, dims = value.shape[1], value.ndim - 2
    if draft.chance(0.3):
        weight = draft.parameter(channels)
        draft.let(f"F.instance_norm({value}, None, None, {weight}, None, True, 0.1, 1e-05)")
    else:
        options = draft.pick(("", ", affine=True", ", affine=True, track_running_stats=True"))
        draft.let(f"{draft.layer(f'nn.InstanceNorm{dims}d({channels}{options})')}({value})")


@BOOK.add(1)
def unit(draft: Draft) -> None:
    """Vectors of length one, standardised ones, and other norms by hand."""
    value = draft.take(2, 3, 4)
    dim = draft.index(value, draft.dim(value))
    pattern = draft.pick(
        (
            "F.normalize({v}, 2.0, {d}, 1e-12)",
            "{v} / ({v}.norm(2, {d}, keepdim=True) + 0.1)",
            "({v} - {v}.mean({d}, keepdim=True)) / ({v}.std({d}, keepdim=True) + 0.1)",
            "{v} / ({v}.abs().sum({d}, keepdim=True) + 1.0)",
            "{v} - {v}.amax({d}, keepdim=True)",
            "F.local_response_norm({v}, 3, 0.0001, 0.75, 1.0)",
            "{v} / ({v}.var({d}, keepdim=True, unbiased=False) + 0.5).sqrt()",
            "{v} / (torch.linalg.vector_norm({v}, 2, {d}, True) + 0.1)",
            "{v} / {v}.shape[{d}] ** 0.5",
            "{v} - {v}.sum({d}, keepdim=True) / {v}.shape[{d}]",
            "F.softmax({v}, {d})",
            "{v}.softmax({d})",
            "F.log_softmax({v}, {d})",
            "torch.softmax({v}, {d}, dtype=torch.float64)",
            "F.softmin({v}, {d})",
            "{v}.exp() / ({v}.exp().sum({d}, keepdim=True))",
            "F.gumbel_softmax({v}, 1.0, False, 1e-10, {d}) * 0.0 + {v}",
        )
    )
    draft.let(pattern.format(v=value, d=dim))

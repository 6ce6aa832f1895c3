"""What makes new units: linear layers, convolutions, embeddings, in all their spellings."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError, Value
from tests.programs.grammar.productions.book import Book

BOOK = Book("layers")


def linear(draft: Draft, value: Value, out: int) -> Value:
    """A linear layer on the last dim."""
    bias = draft.chance(0.8)
    layer = draft.layer(f"nn.Linear({value.shape[-1]}, {out}, bias={bias})")
    return draft.let(f"{layer}({value})")


@BOOK.add(4)
def dense(draft: Draft) -> None:
    linear(draft, draft.take(2, 3, 4), draft.width())


@BOOK.add(4)
def convolution(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    dims, channels = value.ndim - 2, value.shape[1]
    out = draft.width()
    groups = draft.divisor(channels, out) if draft.chance(0.3) else 1
    kernel, dilation = draft.pick((1, 3, 3)), draft.pick((1, 1, 2))
    stride = draft.pick((1, 1, 2))
    padding = repr("same") if stride == 1 and draft.chance(0.2) else str(dilation * (kernel // 2))
    mode = draft.pick(("zeros", "zeros", "zeros", "circular", "reflect" if dims < 3 else "replicate"))
    bias = draft.chance(0.8)
    if draft.chance(0.25):
        parameter = draft.parameter(out, channels // groups, *[kernel] * dims)
        offset = draft.parameter(out) if bias else "None"
        draft.let(f"F.conv{dims}d({value}, {parameter}, {offset}, {stride}, {padding}, {dilation}, {groups})")
        return
    layer = draft.layer(
        f"nn.Conv{dims}d({channels}, {out}, {kernel}, stride={stride}, padding={padding}, dilation={dilation},"
        f' groups={groups}, bias={bias}, padding_mode="{mode}")'
    )
    draft.let(f"{layer}({value})")


@BOOK.add(1)
def embedding(draft: Draft) -> None:
    whole = [v for v in draft.values.values() if not v.tensor.is_floating_point() and v.tensor.dtype.itemsize == 8]
    if not whole:
        raise NoFitError
    value = draft.pick(whole)
    layer = draft.layer(f"nn.Embedding({int(value.tensor.max()) + 8}, {draft.width()})")
    draft.let(f"{layer}({value} % {int(value.tensor.max()) + 8})" if draft.chance(0.2) else f"{layer}({value})")

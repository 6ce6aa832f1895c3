"""What makes new units: linear layers, convolutions, embeddings, in all their spellings."""

from __future__ import annotations

import re

from tests.programs.grammar.draft import Draft, NoFitError, Value
from tests.programs.grammar.productions.book import Book

BOOK = Book("layers")


def linear(draft: Draft, value: Value, out: int) -> Value:
    """A linear layer on the last dim, in one of its spellings."""
    size = value.shape[-1]
    form = draft.pick(range(8))
    if form == 0:
        bias = draft.parameter(out) if draft.chance() else "None"
        return draft.let(f"F.linear({value}, {draft.parameter(out, size)}, {bias})")
    if form == 1:
        return draft.let(
            draft.pick(("{v} @ {p}", "torch.matmul({v}, {p})")).format(v=value, p=draft.parameter(size, out))
        )
    if form == 2 and value.ndim == 2:
        matrix, bias = draft.parameter(size, out), draft.parameter(out)
        return draft.let(
            draft.pick(
                (
                    f"torch.addmm({bias}, {value}, {matrix}, beta=1.0, alpha=1.0)",
                    f"torch.mm({value}, {matrix})",
                    f"torch.addmm({bias}, {value}, {matrix}, beta=0.5, alpha=2.0)",
                )
            )
        )
    if form == 3 and value.ndim in (2, 3):
        lead = "bt"[: value.ndim - 1]
        return draft.let(f'torch.einsum("{lead}i,oi->{lead}o", {value}, {draft.parameter(out, size)})')
    if form == 4:
        return draft.let(f"{value} @ {draft.parameter(out, size)}.{draft.pick(('T', 't()', 'mT', 'transpose(0, 1)'))}")
    layer = draft.layer(f"nn.Linear({size}, {out}, bias={draft.chance(0.8)})")
    return draft.let(f"{layer}({value})")


@BOOK.add(5)
def dense(draft: Draft) -> None:
    linear(draft, draft.take(2, 3, 4), draft.width())


@BOOK.add(3)
def residual(draft: Draft) -> None:
    """A branch that comes back to the same size."""
    value = draft.take(2, 3, 4)
    if value.ndim == 4 and draft.chance(0.7):
        channels, hidden = value.shape[1], draft.width()
        one = draft.layer(f"nn.Conv2d({channels}, {hidden}, 3, padding=1)")
        two = draft.layer(f"nn.Conv2d({hidden}, {channels}, 1)")
        draft.let(f"{value} + {two}(F.relu({one}({value})))")
        return
    inner = draft.let(f"F.gelu({linear(draft, value, draft.width())})")
    branch = linear(draft, inner, value.shape[-1])
    draft.let(
        draft.pick((f"{value} + {branch}", f"{branch} + {value}", f"{value} + 0.5 * {branch}", f"{value} - {branch}"))
    )


@BOOK.add(1)
def joined(draft: Draft) -> None:
    """Two branches to one size, added or multiplied."""
    one = draft.take(2, 3)
    two = draft.take(where=lambda v: v.ndim == one.ndim and v.shape[:-1] == one.shape[:-1])
    out = draft.width()
    draft.let(
        draft.pick(("{a} + {b}", "{a} * {b}.sigmoid()", "F.silu({a}) * {b}", "torch.maximum({a}, {b})")).format(
            a=linear(draft, one, out), b=linear(draft, two, out)
        )
    )


@BOOK.add(5)
def convolution(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    dims, channels = value.ndim - 2, value.shape[1]
    out = channels * draft.pick((1, 2)) if draft.chance(0.15) else draft.width()
    groups = draft.divisor(channels, out) if draft.chance(0.3) else 1
    kernel, dilation = draft.pick((1, 3, 3)), draft.pick((1, 1, 2))
    stride = draft.pick((1, 1, 2))
    padding = repr("same") if stride == 1 and draft.chance(0.2) else str(dilation * (kernel // 2))
    mode = draft.pick(("zeros", "zeros", "zeros", "circular", "reflect" if dims < 3 else "replicate"))
    bias = draft.chance(0.8)
    if draft.chance(0.25):
        parameter = draft.parameter(out, channels // groups, *[kernel] * dims)
        offset = draft.parameter(out) if bias else "None"
        call = draft.pick((f"F.conv{dims}d", f"F.conv{dims}d", "torch.convolution"))
        if call == "torch.convolution":
            if padding.startswith("'"):
                raise NoFitError
            full = f"[{stride}] * {dims}, [{padding}] * {dims}, [{dilation}] * {dims}, False, [0] * {dims}, {groups}"
            draft.let(f"torch.convolution({value}, {parameter}, {offset}, {full})")
            return
        draft.let(f"{call}({value}, {parameter}, {offset}, {stride}, {padding}, {dilation}, {groups})")
        return
    layer = draft.layer(
        f"nn.Conv{dims}d({channels}, {out}, {kernel}, stride={stride}, padding={padding}, dilation={dilation},"
        f' groups={groups}, bias={bias}, padding_mode="{mode}")'
    )
    draft.let(f"{layer}({value})")


@BOOK.add(1)
def transposed(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    dims, channels, out = value.ndim - 2, value.shape[1], draft.width()
    groups = draft.divisor(channels, out) if draft.chance(0.4) else 1
    stride = draft.pick((1, 2))
    extra = draft.pick((0, 1)) if stride == 2 else 0
    if draft.chance(0.3):
        weight = draft.parameter(channels, out // groups, *[3] * dims)
        draft.let(f"F.conv_transpose{dims}d({value}, {weight}, None, {stride}, 1, {extra}, {groups}, 1)")
    else:
        layer = draft.layer(f"nn.ConvTranspose{dims}d({channels}, {out}, 3, {stride}, 1, {extra}, groups={groups})")
        draft.let(f"{layer}({value})")


@BOOK.add(1)
def depthwise(draft: Draft) -> None:
    value = draft.take(3, 4)
    dims, channels = value.ndim - 2, value.shape[1]
    factor = draft.pick((1, 1, 2))
    layer = draft.layer(f"nn.Conv{dims}d({channels}, {channels * factor}, 3, padding=1, groups={channels})")
    draft.let(f"{layer}({value})")


@BOOK.add(1)
def embedding(draft: Draft) -> None:
    whole = [v for v in draft.values.values() if not v.tensor.is_floating_point() and v.tensor.dtype.itemsize == 8]
    if not whole:
        raise NoFitError
    value = draft.pick(whole)
    rows = int(value.tensor.max()) + 8
    width = draft.width()
    form = draft.pick(range(5))
    if form == 0:
        draft.let(f"F.embedding({value}, {draft.parameter(rows, width)}, 1)")
    elif form == 1 and value.ndim == 2:
        mode = draft.pick(("sum", "mean", "max"))
        draft.let(f'F.embedding_bag({value}, {draft.parameter(rows, width)}, mode="{mode}")')
    elif form == 2 and value.ndim == 2:
        draft.let(f"{draft.layer(f'nn.EmbeddingBag({rows}, {width})')}({value})")
    elif form == 3:
        draft.let(f"F.one_hot({value} % 8, 8).double() @ {draft.parameter(8, width)}")
    else:
        draft.let(f"{draft.layer(f'nn.Embedding({rows}, {width}, padding_idx=0)')}({value})")


@BOOK.add(1)
def bilinear(draft: Draft) -> None:
    one = draft.take(2, 3)
    two = draft.take(where=lambda v: v.ndim == one.ndim and v.shape[:-1] == one.shape[:-1])
    layer = draft.layer(f"nn.Bilinear({one.shape[-1]}, {two.shape[-1]}, {draft.width()})")
    draft.let(f"{layer}({one}, {two})")


@BOOK.add(2)
def sliced(draft: Draft) -> None:
    """Slices of one parameter, of which some are used together."""
    value = draft.take(2, 3)
    size, out = value.shape[-1], draft.pick((8, 12, 16))
    weight, half = draft.parameter(out, size), out // 2
    form = draft.pick(range(8))
    if form == 0:
        draft.let(f"F.linear({value}, {weight}[:{half}])")
        draft.let(f"F.linear({value}, {weight}[{half}:])")
    elif form == 1:
        one, two = (
            draft.let(f"F.linear({value}, {weight}[:{half}])"),
            draft.let(f"F.linear({value}, {weight}[-{half}:])"),
        )
        draft.let(f"{one} * {two}.sigmoid()")
    elif form == 2:
        first = draft.let(f"F.linear({value}, {weight})")
        draft.let(f"F.linear({value}, {weight}[:{half}]) + {first}[..., :{half}]")
    elif form == 3:
        wide = draft.parameter(out, size + 4)
        bias = draft.parameter(out)
        draft.let(f"F.linear({value}, {wide}[:, {draft.pick((0, 2, 4))}:][:, :{size}], {bias})")
    elif form == 4:
        q, k = draft.let(f"{weight}.chunk(2)[0]"), draft.let(f"{weight}.chunk(2)[1]")
        draft.let(f"F.linear({value}, {q}) + F.linear({value}, {k})")
    elif form == 5:
        made = draft.let(f"F.linear({value}, {weight}).relu()")
        draft.let(f"F.linear({made}, {weight}.t())")
    elif form == 6:
        bias = draft.parameter(out)
        draft.let(f"F.linear({value}, {weight}[::2], {bias}[::2])")
        draft.let(f"F.linear({value}, {weight}[1::2], {bias}[:{half}])")
    else:
        made = draft.let(f"F.linear({value}, {weight}[:{half}])")
        draft.let(f"F.linear({made}, {weight}[:{half}].T) + {value}")


@BOOK.add(2)
def again(draft: Draft) -> None:
    """A layer that was made before is called once more."""
    layers = []
    for line in draft.layers:
        found = re.match(r"(self\.m\d+) = nn\.Linear\((\d+), (\d+)", line)
        if found:
            layers.append((found[1], int(found[2])))
    if not layers:
        raise NoFitError
    layer, size = draft.pick(layers)
    value = draft.take(where=lambda v: v.ndim > 1 and v.shape[-1] == size)
    draft.let(f"{layer}({value})")


@BOOK.add(1)
def deformable(draft: Draft) -> None:
    """Operations of torchvision."""
    value = draft.take(4)
    import torchvision  # noqa: F401 - registers the operations

    form = draft.pick(range(4))
    channels, out = value.shape[1], draft.width()
    second = min(1, value.shape[0] - 1)  # kernels don't check which picture of the batch a box is in
    boxes = f"torch.tensor([[0, 0.0, 0.0, 2.0, 2.0], [{second}, 0.0, 1.0, 3.0, 2.0]])"
    if form == 0:
        offsets = draft.layer(f"nn.Conv2d({channels}, 18, 3, padding=1)")
        weight, bias = draft.parameter(out, channels, 3, 3), draft.parameter(out)
        draft.let(f"torchvision.ops.deform_conv2d({value}, {offsets}({value}), {weight}, {bias}, padding=1)")
    elif form == 1:
        draft.let(f"torchvision.ops.roi_align({value}, {boxes}, 2, 1.0, 2)")
    elif form == 2:
        draft.let(f"torchvision.ops.roi_pool({value}, {boxes}, 2, 1.0)")
    else:
        four = draft.layer(f"nn.Conv2d({channels}, 8, 1)")
        pool = draft.pick(("ps_roi_align", "ps_roi_pool"))
        draft.let(f"torchvision.ops.{pool}({four}({value}), {boxes}, 2, 1.0)")

"""In place: operations, writes into views, ``out=``; and who reads what was written."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.productions.book import Book
from tests.programs.grammar.productions.indexing import at

BOOK = Book("writes")
IN_PLACE = (
    "relu_()",
    "mul_(0.5)",
    "add_(1.0)",
    "sub_(0.5)",
    "div_(2.0)",
    "tanh_()",
    "sigmoid_()",
    "clamp_(-1.0, 1.0)",
    "abs_()",
    "neg_()",
    "square_().clamp_(0.0, 4.0)",
    "exp_().clamp_(0.0, 3.0)",
    "floor_()",
    "fill_(0.5)",
    "zero_()",
    "pow_(2).clamp_(0.0, 4.0)",
    "round_()",
    "masked_fill_(torch.zeros((), dtype=torch.bool), 1.0)",
    "clamp_min_(0.0)",
    "fmod_(1.0)",
    "erf_()",
    "mul_(torch.tensor(0.5))",
    "cumsum_(-1)",
    "triu_(0)",
    "sin_()",
    "remainder_(1.0)",
    "nan_to_num_()",
    "copysign_(1.0)",
)
PAIRED = (
    "add_({o})",
    "mul_({o})",
    "sub_({o}, alpha=0.5)",
    "copy_({o})",
    "add_({o}, alpha=2.0)",
    "lerp_({o}, 0.3)",
    "addcmul_({o}, {o}, value=0.1)",
    "div_({o}.abs() + 1.0)",
    "masked_fill_({o} > 0.0, 0.0)",
    "masked_scatter_({o} > 0.0, {o})",
    "addcdiv_({o}, {o}.abs() + 1.0, value=0.5)",
)


def _own(draft: Draft, *ndims: int):  # type: ignore[no-untyped-def]
    """A tensor that may be written into: a copy, most of the time."""
    value = draft.take(*ndims)
    if draft.chance(0.6):
        return draft.let(f"{value}.clone()" if draft.chance() else f"{value} * 1.0")
    source = next(s for s in draft.statements if s.target == value.name)
    if any(source.text == f"{value} = {name}" for name, _ in draft.inputs):
        raise NoFitError  # inputs belong to the caller
    return value


def _kept_out(draft: Draft, value) -> None:  # type: ignore[no-untyped-def]
    """Raises if a write would reach an input or a parameter of the model."""
    pointer = value.tensor.untyped_storage().data_ptr()
    outside = (
        [draft.space[name] for name, _ in draft.inputs] + list(draft.module.parameters()) + list(draft.module.buffers())
    )
    if any(tensor.untyped_storage().data_ptr() == pointer for tensor in outside):
        raise NoFitError


@BOOK.add(2)
def changed(draft: Draft) -> None:
    value = _own(draft)
    _kept_out(draft, value)
    if draft.chance():
        draft.do(f"{value}.{draft.pick(IN_PLACE)}")
    else:
        draft.do(f"{value}.{draft.pick(PAIRED).format(o=draft.alike(value))}")
    draft.let(f"{value}.relu()" if draft.chance(0.3) else f"{value} + 0.0")


@BOOK.add(2)
def operators(draft: Draft) -> None:
    """``+=`` and friends."""
    value = _own(draft)
    _kept_out(draft, value)
    other = draft.alike(value).name if draft.chance(0.7) else "0.5"
    draft.do(f"{value} {draft.pick(('+=', '*=', '-='))} {other}")
    draft.let(f"{value}.tanh()")


@BOOK.add(3)
def window(draft: Draft) -> None:
    """A write into a slice."""
    value = _own(draft, 2, 3, 4)
    _kept_out(draft, value)
    dim = draft.dim(value)
    n = value.shape[dim]
    if n < 4:
        raise NoFitError
    k = draft.pick(range(1, n))
    place = draft.pick(
        (
            f":{k}",
            f"{k}:",
            f"-{k}:",
            f":{value}.shape[{dim}] // 2",
            "::2",
            "0",
            "-1",
            f"{k - 1}:{k}",
            f"{value}.shape[{dim}] - {k}:",
        )
    )
    where = at(dim, place)
    form = draft.pick(range(6))
    if form == 0:
        draft.do(f"{value}[{where}] = {draft.pick(('0.0', '0.5'))}")
    elif form == 1:
        draft.do(f"{value}[{where}] = {value}[{where}].tanh()")
    elif form == 2:
        draft.do(f"{value}[{where}] {draft.pick(('*=', '+='))} {draft.pick(('2.0', f'{value}[{where}].sigmoid()'))}")
    elif form == 3:
        draft.do(f"{value}[{where}].{draft.pick(IN_PLACE)}")
    elif form == 4:
        other = draft.alike(value)
        draft.do(f"{value}[{where}] = {other}[{where}]")
    else:
        draft.do(f"{value}[{where}].copy_({value}[{where}] * 0.5 + 1.0)")
    draft.let(f"{value} * 1.0" if draft.chance() else f"{value}.relu()")


@BOOK.add(2)
def through_view(draft: Draft) -> None:
    """A write into a view, read through the whole."""
    value = _own(draft, 2, 3, 4)
    _kept_out(draft, value)
    dim = draft.dim(value)
    n = value.shape[dim]
    form = draft.pick(range(8))
    view = (
        f"{value}.transpose(0, {dim})",
        f"{value}.unsqueeze({dim})",
        f"{value}.flatten()",
        f"{value}.narrow({dim}, 0, {max(n // 2, 1)})",
        f"{value}.select({dim}, 0)",
        f"{value}.chunk(2, {dim})[0]",
        f"{value}.permute({', '.join(map(str, reversed(range(value.ndim))))})",
        f"{value}.unflatten({dim}, (2, -1)).select({dim}, 1)",
    )[form]
    made = draft.let(view)
    draft.do(f"{made}.{draft.pick(IN_PLACE)}")
    draft.let(f"{value} + 1.0" if draft.chance(0.7) else f"{made} + 1.0")


@BOOK.add(1)
def positions(draft: Draft) -> None:
    """Writes at positions."""
    value = _own(draft, 2, 3)
    _kept_out(draft, value)
    dim = draft.dim(value)
    two = "torch.tensor([0, 1])"
    draft.do(
        draft.pick(
            (
                f"{value}[{at(dim, two)}] = 0.5",
                f"{value}[{at(dim, '[0, 1]')}] += 1.0",
                f"{value}[{value} > 0.0] = 0.25",
                f"{value}.index_fill_({dim}, {two}, 0.5)",
                f"{value}.index_add_({dim}, {two}, {value}.narrow({dim}, 0, 2) * 0.5)",
                f"{value}.scatter_({dim}, {value}.argsort({dim}), {value}.clone())",
                f"{value}[{value} < 0.0] *= 0.1",
                f"{value}.index_copy_({dim}, {two}, {value}.narrow({dim}, 0, 2) * 0.5)",
                f"{value}[0] = {value}[1]",
                f"{value}.index_put_((torch.tensor([0]),), {value}[1:2] * 0.5, accumulate=True)",
                f"{value}.masked_fill_({value} > 0.5, 0.5)",
                f"{value}.scatter_add_({dim}, torch.zeros({value}.shape, dtype=torch.int64), {value}.clone())",
            )
        )
    )
    draft.let(f"{value} + 0.5")


@BOOK.add(1)
def out(draft: Draft) -> None:
    """``out=``, into a tensor that was made for it."""
    value = draft.take(2, 3, 4)
    target = draft.let(
        draft.pick(("torch.empty_like({v})", "torch.zeros_like({v})", "{v}.new_empty({v}.shape)")).format(v=value)
        + ".fill_(0.0)"
    )
    other = draft.alike(value).name if draft.chance(0.5) else f"{value}.sigmoid()"
    draft.do(
        draft.pick(
            (
                f"torch.add({value}, {other}, out={target})",
                f"torch.mul({value}, {other}, out={target})",
                f"torch.tanh({value}, out={target})",
                f"torch.maximum({value}, {other}, out={target})",
                f"torch.clamp({value}, -1.0, 1.0, out={target})",
            )
        )
    )
    draft.let(f"{target} * 0.5")


@BOOK.add(2)
def filled(draft: Draft) -> None:
    """A result is put together in a tensor of zeros."""
    value = draft.take(2, 3)
    dim = value.ndim - 1
    n, size = value.shape[dim], f"{value}.shape[-1]"
    if n < 2:
        raise NoFitError
    half = n // 2
    lead = ", ".join(f"{value}.shape[{d}]" for d in range(dim))
    form = draft.pick(range(4))
    if form == 0:
        made = draft.let(f"torch.zeros({value}.shape)")
        draft.do(f"{made}[..., :{half}] = {value}[..., :{half}]")
        draft.do(f"{made}[..., {half}:] = {value}[..., {half}:].relu()")
    elif form == 1:
        made = draft.let(f"torch.zeros({lead}, {size} * 2)")
        draft.do(f"{made}[..., :{size}] = {value}")
        draft.do(f"{made}[..., {size}:] = {value}.tanh()")
    elif form == 2:
        made = draft.let(f"{value}.new_zeros({value}.shape)")
        draft.do(f"{made}[..., ::2] = {value}[..., ::2]")
    else:
        made = draft.let(f"torch.zeros({lead}, {n})")
        draft.do(f"for k in range({value.shape[0]}):\n    {made}[k] = {value}[k] * (k + 1.0)")
    draft.let(f"{made} + 0.0")

"""Views, permutations, joins and cuts: what moves elements without computing."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError, Value
from tests.programs.grammar.productions.book import Book

BOOK = Book("shapes")


def factors(draft: Draft, size: int) -> tuple[int, int]:
    """Splits a size into two factors."""
    first = draft.divisor(size)
    if first in (1, size):
        raise NoFitError
    return first, size // first


def parts(draft: Draft, value: Value, dim: int) -> tuple[str, str]:
    """Writes two factors of a dim: numbers, attributes, or computed from the other."""
    one, two = factors(draft, value.shape[dim])
    size = f"{value}.shape[{dim}]"
    return draft.pick(
        (
            (str(one), str(two)),
            (str(one), "-1"),
            ("-1", str(two)),
            (str(one), f"{size} // {one}"),
            (f"{size} // {two}", str(two)),
            (draft.constant(one), "-1"),
            (draft.constant(one), draft.constant(two)),
        )
    )


@BOOK.add(3)
def view(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    one, two = parts(draft, value, dim)
    sizes = [draft.size(value, d) for d in range(value.ndim)]
    form = draft.pick(range(5))
    if form == 0:
        draft.let(f"{value}.unflatten({draft.index(value, dim)}, ({one}, {two}))")
        return
    call = draft.pick((f"{value}.reshape", f"{value}.contiguous().view", f"torch.reshape({value}, "))
    listed = ", ".join([*sizes[:dim], one, two, *sizes[dim + 1 :]])
    text = f"{call}({listed}))" if call.endswith(", ") else f"{call}({listed})"
    made = draft.let(text)
    if form == 1:
        back = ", ".join([*sizes[:dim], "-1", *sizes[dim + 1 :]])
        draft.let(f"{made}.transpose({dim}, {dim + 1}).reshape({back})")
    elif form == 2:
        draft.let(f"{made}.flip({dim}).flatten({dim}, {dim + 1})")
    elif form == 3:
        draft.let(f"{made}.mean({draft.pick((dim, dim + 1))})")


@BOOK.add(2)
def flat(draft: Draft) -> None:
    value = draft.take(3, 4, 5)
    first = draft.pick(range(value.ndim - 1))
    last = draft.pick(range(first + 1, value.ndim))
    form = draft.pick(range(5))
    if form == 0 and first + 1 == last:
        sizes = [draft.size(value, d) for d in range(value.ndim)]
        draft.let(f"{value}.reshape({', '.join([*sizes[:first], '-1', *sizes[last + 1 :]])})")
    elif form == 1:
        draft.let(f"{value}.flatten(1).unflatten(1, {value}.shape[1:])")
    elif form == 2:
        draft.let(f"{value}.ravel().view_as({value})" if draft.chance() else f"{value}.flatten().reshape_as({value})")
    else:
        draft.let(f"{value}.flatten({draft.index(value, first)}, {draft.index(value, last)})")


@BOOK.add(3)
def moved(draft: Draft) -> None:
    value = draft.take(2, 3, 4, 5)
    one, two = draft.index(value, draft.dim(value)), draft.index(value, draft.dim(value))
    order = list(range(value.ndim))
    draft.rng.shuffle(order)
    if draft.chance(0.7):
        order = [0, *[d for d in order if d]]
    options = [
        f"{value}.permute({', '.join(map(str, order))})",
        f"{value}.transpose({one}, {two})",
        f"{value}.swapaxes({one}, {two})",
        f"torch.swapdims({value}, {one}, {two})",
        f"{value}.movedim({one}, {two})",
        f"torch.moveaxis({value}, {one}, {two})",
        f"{value}.mT",
        f"{value}.mH",
        f"{value}.transpose({one}, {two}).contiguous()",
        f"{value}.adjoint()",
    ]
    if value.ndim == 2:
        options += [f"{value}.T", f"{value}.t()", f"{value}.t().contiguous().t()"]
    draft.let(draft.pick(options))


@BOOK.add(2)
def sized(draft: Draft) -> None:
    """Dims of size one, and repeated ones."""
    value = draft.take(2, 3, 4)
    dim = draft.pick(range(1, value.ndim + 1))
    grown = draft.let(f"{value}.unsqueeze({dim})")
    form = draft.pick(range(8))
    sizes = ", ".join("3" if d == dim else "-1" for d in range(value.ndim + 1))
    if form == 0:
        draft.let(f"{grown}.squeeze({dim})")
    elif form == 1:
        draft.let(f"{grown}.expand({sizes})")
    elif form == 2:
        draft.let(f"{grown}.expand({sizes}).flatten({dim - 1}, {dim})")
    elif form == 3:
        repeats = ", ".join("2" if d == dim else "1" for d in range(value.ndim + 1))
        draft.let(f"{grown}.{draft.pick(('repeat', 'tile'))}({repeats})")
    elif form == 4:
        draft.let(f"{grown}.expand_as({grown}) + 1")
    elif form == 5:
        draft.let(f"{value}[{', '.join([':'] * dim)}, None]")
    elif form == 6:
        shape = ", ".join("2" if d == dim else f"{grown}.shape[{d}]" for d in range(value.ndim + 1))
        draft.let(f"{grown}.broadcast_to({shape})")
    else:
        draft.let(f"{grown}.clone().squeeze_({dim}).unsqueeze_(1)")


@BOOK.add(1)
def repeated(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    ones = ["1"] * value.ndim
    ones[dim] = "2"
    draft.let(
        draft.pick(
            (
                f"{value}.repeat({', '.join(ones)})",
                f"{value}.repeat_interleave(2, {dim})",
                f"{value}.tile({', '.join(ones)})",
                f"torch.cat([{value}] * 2, {dim})",
                f"{value}.repeat_interleave(torch.tensor([1, 2]), 0)",
                f"{value}.unsqueeze({dim + 1}).expand({', '.join(['-1'] * (dim + 1) + ['2'] + ['-1'] * (value.ndim - dim - 1))}).flatten({dim}, {dim + 1})",
            )
        )
    )


@BOOK.add(4)
def cut(draft: Draft) -> None:
    """A dim is cut into pieces, some of which are used."""
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    n, at = value.shape[dim], draft.index(value, dim)
    if n < 4:
        raise NoFitError
    size, half = f"{value}.shape[{dim}]", n // 2
    first = draft.pick(range(1, n))
    form = draft.pick(range(12))
    if form <= 3 and n % 2 == 0:
        text = draft.pick(
            (
                f"{value}.chunk(2, {at})",
                f"{value}.split({half}, {at})",
                f"{value}.split({size} // 2, {at})",
                f"torch.split({value}, [{half}, {half}], {at})",
                f"{value}.tensor_split(2, {at})",
                f"{value}.split({draft.constant(half)}, {at})",
                f"{value}.unsafe_chunk(2, {at})",
                f"{value}.unsafe_split({half}, {at})",
                f"torch.unsafe_split_with_sizes({value}, [{half}, {half}], {at})",
                f"{value}.split_with_sizes([{half}, {size} - {half}], {at})",
            )
        )
        one, two = draft.let(f"{text}[0]"), draft.let(f"{text}[1]")
        if draft.chance(0.7):
            draft.let(
                draft.pick(
                    (
                        f"{one} * {two}.sigmoid()",
                        f"torch.cat([{two}, {one}], {at})",
                        f"{one} + {two}",
                        f"torch.cat(({one}, {two} * 2.0), {at})",
                        f"torch.stack([{one}, {two}], {at})",
                    )
                )
            )
    elif form == 4:
        pieces = draft.pick(
            (
                f"[{first}, {n - first}]",
                f"[{first}, {size} - {first}]",
                f"({draft.constant(first)}, {draft.constant(n - first)})",
            )
        )
        name, other = draft.name("v"), draft.name("v")
        both = draft.run(f"{name}, {other} = {value}.split({pieces}, {at})", name)
        assert both
        draft.let(f"torch.cat([{other}.relu(), {name}], {at})")
    elif form == 5:
        text = draft.pick(
            (
                f"{value}.narrow({dim}, 0, {first})",
                f"{value}.narrow({dim}, {n - first}, {first})",
                f"{value}[{', '.join([':'] * dim + [f':{first}'])}]",
                f"{value}[{', '.join([':'] * dim + [f'-{first}:'])}]",
                f"{value}[{', '.join([':'] * dim + [f'{first - 1}:{size}'])}]",
                f"{value}[{', '.join([':'] * dim + ['::2'])}]",
            )
        )
        draft.let(text)
    elif form == 6:
        lead = ", ".join([":"] * dim)
        draft.let(f"torch.cat([{value}[{lead}, {first}:], {value}[{lead}, :{first}]], {at})")
    elif form == 7 and n % 2 == 0:
        draft.let(f"F.glu({value}, {at})")
    elif form == 8:
        draft.let(f"sum({value}.unbind({at}))" if draft.chance() else f"torch.stack({value}.unbind({at}), {at})")
    elif form == 9:
        lead = ", ".join([":"] * dim)
        draft.let(
            draft.pick((f"{value}.select({at}, {first - 1})", f"{value}[{lead}, {first - 1}]", f"{value}[{lead}, -1]"))
        )
    elif form == 10:
        one = draft.let(f"{value}.narrow({dim}, 0, {first}) * 2.0")
        draft.let(f"torch.slice_scatter({value}, {one}, {dim}, 0, {first}, 1)")
    else:
        one = draft.let(f"{value}.select({dim}, 0).tanh()")
        draft.let(f"torch.select_scatter({value}, {one}, {dim}, 0)")


@BOOK.add(3)
def concatenated(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)

    def fits(other: Value) -> bool:
        return other.ndim == value.ndim and all(
            a == b for d, (a, b) in enumerate(zip(value.shape, other.shape, strict=True)) if d != dim
        )

    others = [draft.take(where=fits) for _ in range(draft.pick((1, 1, 2)))]
    listed = ", ".join(map(str, [value, *others]))
    call = draft.pick(("cat", "cat", "concat", "concatenate"))
    draft.let(f"torch.{call}([{listed}], {draft.index(value, dim)})")


@BOOK.add(1)
def stacked(draft: Draft) -> None:
    value = draft.take(2, 3)
    other = draft.alike(value)
    dim = draft.pick(range(value.ndim + 1))
    made = draft.let(f"torch.stack([{value}, {other}], {dim})")
    draft.let(
        draft.pick(
            (
                f"{made}.sum({dim})",
                f"{made}.flatten({max(dim - 1, 0)}, {max(dim, 1)})",
                f"{made}.mean({dim})",
                f"{made}.unbind({dim})[1]",
                f"{made}.amax({dim})",
            )
        )
    )


@BOOK.add(2)
def pixels(draft: Draft) -> None:
    value = draft.take(4)
    channels, height, width = value.shape[1:]
    form = draft.pick(range(5))
    if form == 0:
        draft.let(f"F.pixel_shuffle({value}, 2)")
    elif form == 1:
        draft.let(f"F.pixel_unshuffle({value}, 2)")
    elif form == 2:
        groups = draft.divisor(channels)
        draft.let(f"F.channel_shuffle({value}, {groups})")
    elif form == 3:
        groups = draft.divisor(channels)
        made = draft.let(f"{value}.view({value}.shape[0], {groups}, {value}.shape[1] // {groups}, {height}, {width})")
        draft.let(f"{made}.transpose(1, 2).reshape({value}.shape[0], -1, {height}, {width})")
    else:
        tokens = draft.let(f"{value}.flatten(2).transpose(1, 2)")
        if draft.chance():
            draft.let(f"{tokens}.transpose(1, 2).unflatten(2, ({height}, {width}))")


@BOOK.add(1)
def strided(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    form = draft.pick(range(6))
    dim = draft.dim(value)
    if form == 0:
        draft.let(f"{value}.unfold({draft.index(value, dim)}, 2, 1)")
    elif form == 1:
        draft.let(f"{value}.diagonal(0, {value.ndim - 2}, {value.ndim - 1})")
    elif form == 2:
        solid = draft.let(f"{value}.contiguous()")
        draft.let(f"torch.as_strided({solid}, {solid}.shape, {solid}.stride())")
    elif form == 3:
        draft.let(f"{value}.view(torch.int64).view(torch.float64)")
    elif form == 4:
        draft.let(f"{value}.{draft.pick(('tril', 'triu'))}(0)")
    else:
        draft.let(
            draft.pick(
                (
                    f"{value}.flip({dim})",
                    f"{value}.roll(1, {dim})",
                    f"{value}.cumsum({dim})",
                    f"torch.rot90({value}, 2, [{value.ndim - 2}, {value.ndim - 1}])",
                    f"{value}.tanh().cumprod({dim})",
                    f"{value}.diff(1, {dim})",
                    f"{value}.roll((1,), ({dim},))",
                    f"torch.trapezoid({value}, dim={dim})",
                    f"{value}.logcumsumexp({dim})",
                )
            )
        )

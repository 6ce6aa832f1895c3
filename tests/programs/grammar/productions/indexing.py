"""Looking up, gathering, scattering; positions that are numbers."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.productions.book import Book

BOOK = Book("indexing")


def at(dim: int, what: str) -> str:
    """Writes an index along one dim."""
    return ", ".join([*[":"] * dim, what])


@BOOK.add(2)
def read(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    n = value.shape[dim]
    if n < 3:
        raise NoFitError
    listed = [draft.pick(range(n)) for _ in range(3)]
    positions = draft.pick(
        (
            f"torch.tensor({listed})",
            f"torch.arange(0, {n}, 2)",
            f"torch.arange({value}.shape[{dim}])",
            f"torch.arange({n - 1}, -1, -1)",
            f"torch.arange({value}.shape[{dim}] // 2)",
        )
    )
    form = draft.pick(range(11))
    if form == 0:
        draft.let(f"{value}.index_select({dim}, {positions})")
    elif form == 1:
        draft.let(f"{value}[{at(dim, positions)}]")
    elif form == 2:
        draft.let(f"{value}.gather({dim}, {value}.argsort({dim}))")
    elif form == 3:
        draft.let(f"{value}.gather({dim}, torch.zeros({value}.shape, dtype=torch.int64))")
    elif form == 4:
        draft.let(f"{value}[{at(dim, str(listed))}]")
    elif form == 5:
        mask = draft.let(f"torch.tensor({[bool(k % 2) for k in range(n)]})")
        draft.let(f"{value}[{at(dim, str(mask))}]")
    elif form == 6:
        draft.let(f"torch.take({value}, torch.tensor({listed})) + {value}.flatten(1)[:, :1]")
    elif form == 7:
        draft.let(f"torch.take_along_dim({value}, {value}.argsort({dim}), {dim})")
    elif form == 8:
        draft.let(f"torch.ops.aten._unsafe_index({value}, [{', '.join(['None'] * dim + [positions])}])")
    elif form == 9:
        draft.let(f"{value}[torch.tensor([1, 0])]")
    else:
        draft.let(f"{value}[torch.arange({value.shape[0]}), torch.tensor([0, 1])]")


@BOOK.add(2)
def written(draft: Draft) -> None:
    """Scatters and adds at positions, out of place."""
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    n = value.shape[dim]
    if n < 3:
        raise NoFitError
    two = f"torch.tensor({draft.pick(([0, 1], [2, 0], [1, 1]))})"
    source = draft.let(f"{value}.narrow({dim}, 0, 2).tanh()")
    other = draft.pick(
        (
            f"{value}.index_add({dim}, {two}, {source}, alpha=1.0)",
            f"{value}.index_copy({dim}, torch.tensor([0, 1]), {source})",
            f"{value}.index_fill({dim}, {two}, 0.5)",
            f"{value}.scatter({dim}, {value}.argsort({dim}), {value})",
            f"{value}.scatter_add({dim}, torch.zeros({value}.shape, dtype=torch.int64), {value})",
            f'{value}.scatter_reduce({dim}, torch.zeros({value}.shape, dtype=torch.int64), {value}, "amax", include_self=True)',
            f'{value}.index_reduce({dim}, {two}, {source}, "prod", include_self=True)',
            f"{value}.index_put((torch.tensor([1, 0]),), {value}[:2] * 0.5)",
            f"torch.ops.aten._unsafe_index_put({value}, [torch.tensor([1, 0])], {value}[:2] * 0.5)",
            f"torch.zeros({value.shape[0]}, {n}).index_add(1, torch.arange({n}), {value}.movedim({dim}, 1).flatten(2).sum(2))"
            if value.ndim > 2
            else f"{value}.scatter(1, torch.tensor([[0], [1]]), 0.5)",
            f"torch.put({value}, torch.tensor([0, 1]), torch.tensor([0.5, 0.25]))",
            f"{value}.scatter({dim}, torch.zeros({value}.shape, dtype=torch.int64), 0.5)",
        )
    )
    draft.let(other)


@BOOK.add(1)
def masked(draft: Draft) -> None:
    """Where a mask along other dims says so."""
    value = draft.take(2, 3, 4)
    batch = value.shape[0]
    form = draft.pick(range(6))
    rows = f"torch.tensor({[k % 2 == 0 for k in range(batch)]})"
    if form == 0:
        shaped = "".join(f", {1}" for _ in range(value.ndim - 1))
        draft.let(f"{value}.masked_fill({rows}.view({batch}{shaped}), 0.25)")
    elif form == 1:
        draft.let(f"{value}[{rows}]")
    elif form == 2:
        shaped = "".join(f", {1}" for _ in range(value.ndim - 1))
        mask = f"{rows}.view({batch}{shaped}).expand_as({value})"
        draft.let(f"{value}.masked_scatter({mask}, {value}.tanh())")
    elif form == 3:
        draft.let(f"torch.masked_select({value}, {value} > 0.0).sum() * 0.01 + {value}")
    elif form == 4:
        draft.let(f"{value}[{value}.flatten(1)[:, 0].isfinite().nonzero()[:, 0]]")
    else:
        draft.let(f"{value} * (1 + torch.bincount(torch.tensor([0, 1, 1]), minlength={value.shape[-1]}) * 0.1)")


@BOOK.add(1)
def positions(draft: Draft) -> None:
    """Position embeddings, relative biases, rotary angles."""
    value = draft.take(3)
    _, t, d = value.shape
    form = draft.pick(range(6))
    if form == 0:
        table = draft.layer(f"nn.Embedding({t + 4}, {d})")
        draft.let(f"{value} + {table}(torch.arange({value}.shape[1]))")
    elif form == 1:
        draft.let(f"{value} + {draft.parameter(1, t + 2, d)}[:, :{value}.shape[1]]")
    elif form == 2:
        token = draft.parameter(1, 1, d)
        draft.let(f"torch.cat([{token}.expand({value}.shape[0], -1, -1), {value}], 1)")
    elif form == 3 and d % 2 == 0:
        angles = draft.let(f"torch.arange({t}).unsqueeze(1) * 100.0 ** (-torch.arange(0, {d}, 2) / {d})")
        one, two = draft.let(f"{value}[..., ::2]"), draft.let(f"{value}[..., 1::2]")
        draft.let(
            f"torch.cat([{one} * {angles}.cos() - {two} * {angles}.sin(), {one} * {angles}.sin() + {two} * {angles}.cos()], -1)"
        )
    elif form == 4:
        table = draft.parameter(2 * t - 1, d)
        where = draft.let(f"torch.arange({t})[:, None] - torch.arange({t})[None] + {t - 1}")
        draft.let(f"{value} + {table}[{where}].mean(1)")
    else:
        draft.let(f"{value} + torch.linspace(-1.0, 1.0, {t})[:, None]")


@BOOK.add(0.7)
def made(draft: Draft) -> None:
    """Tensors of numbers, of a size of the program."""
    value = draft.take(2, 3)
    n, size = value.shape[-1], f"{value}.shape[-1]"
    text = draft.pick(
        (
            f"torch.zeros({size})",
            f"torch.ones({n})",
            f"torch.full(({size},), 0.5)",
            f"torch.arange({size}) * 0.1",
            f"torch.linspace(0.0, 1.0, {size})",
            f"torch.logspace(0.0, 0.5, {n})",
            f"{value}.new_zeros({size})",
            f"{value}.new_ones({n})",
            f"{value}.new_full(({size},), 0.25)",
            f"torch.tensor([0.5] * {n})",
            f"torch.eye({n})[0]",
            f"torch.tril_indices({n}, {n})[0, :{n}]",
            f"torch.triu_indices({n}, {n})[1, :{n}]",
            f"torch.rand({n}) * 0.0",
            f"torch.randn({size}) * 0.0",
            f"torch.randint(0, 3, ({n},)) * 0",
            f"torch.randperm({n}) * 0",
            f"torch.empty({n}).fill_(0.5)",
            f"{value}.new_empty({n}).fill_(0.5)",
            "torch.scalar_tensor(0.5)",
            f"torch.empty_strided(({n},), (1,)).fill_(0.1)",
            f"{value}.new_empty_strided(({n},), (1,)).fill_(0.1)",
            f"torch.hann_window({n})",
            "torch.tensor(0.5)",
            f"torch.zeros({value}.shape)",
            f"torch.histc({value}, {n}, -1.0, 1.0) * 0.01",
            f"torch.ones({size}).cumsum(0)",
            f"(torch.arange({n}) % 2).double()",
        )
    )
    draft.let(draft.pick(("{v} + {t}", "{v} * (1.0 + {t})")).format(v=value, t=text))

"""Parametrizations, recurrent layers, cells."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft
from tests.programs.grammar.productions.book import Book

BOOK = Book("trained")


@BOOK.add(2)
def parametrized(draft: Draft) -> None:
    """A layer whose weight is made of others."""
    value = draft.take(2, 3, 4)
    out = draft.width()
    if value.ndim == 4 and draft.chance(0.7):
        made = f"nn.Conv2d({value.shape[1]}, {out}, 3, padding=1)"
    else:
        made = f"nn.Linear({value.shape[-1]}, {out})"
    form = draft.pick(range(7))
    wrapped = (
        "parametrizations.weight_norm({m})",
        "parametrizations.weight_norm({m}, dim=None)",
        "parametrizations.spectral_norm({m})",
        "torch.nn.utils.weight_norm({m})",
        "parametrizations.orthogonal({m})",
        "",
        "",
    )[form]
    if wrapped:
        layer = draft.layer(wrapped.format(m=made))
    else:
        layer = draft.layer(made)
        kind = draft.pick(("Doubled()", "Positive()", "Centred()", f"Scaled({out})"))
        draft.set(f'parametrize.register_parametrization({layer}, "weight", {kind})')
    draft.let(f"{layer}({value})")


@BOOK.add(0.5)
def by_hand(draft: Draft) -> None:
    """Weights that the forward makes."""
    value = draft.take(2, 3)
    size, out, rank = value.shape[-1], draft.width(), draft.pick((2, 4))
    form = draft.pick(range(6))
    weight = draft.parameter(out, size)
    if form == 0:
        draft.let(f"F.linear({value}, {weight} / {weight}.norm(2, 1, True))")
    elif form == 1:
        up, down = draft.parameter(out, rank), draft.parameter(rank, size)
        draft.let(f"F.linear({value}, {weight} + {up} @ {down} * 0.5)")
    elif form == 2:
        up, down = (
            draft.layer(f"nn.Linear({rank}, {out}, bias=False)"),
            draft.layer(f"nn.Linear({size}, {rank}, bias=False)"),
        )
        draft.let(f"F.linear({value}, {weight}) + {up}({down}({value})) * 2.0")
    elif form == 3:
        draft.let(f"F.linear({value}, {weight}.softmax(1))")
    elif form == 4:
        draft.let(f"F.linear({value}, {weight} - {weight}.mean(1, keepdim=True))")
    else:
        maker = draft.layer(f"nn.Linear({rank}, {out * size})")
        draft.let(f"F.linear({value}, {maker}({draft.parameter(rank)}).view({out}, {size}))")


@BOOK.add(1)
def recurrent(draft: Draft) -> None:
    value = draft.take(3, where=lambda v: v.shape[1] <= 8)
    size, hidden = value.shape[-1], draft.pick((4, 6, 8))
    kind = draft.pick(("LSTM", "GRU", "RNN"))
    options = draft.pick(
        ("", "", ", bidirectional=True", ", num_layers=2", ", bias=False", ", proj_size=3" if kind == "LSTM" else "")
    )
    layer = draft.layer(f"nn.{kind}({size}, {hidden}, batch_first=True{options})")
    result = draft.pick((f"{layer}({value})[0]", f"{layer}({value})[0]", f"{layer}({value})[0][:, -1]"))
    draft.let(result)


@BOOK.add(1)
def cell(draft: Draft) -> None:
    value = draft.take(2, 3)
    size, hidden = value.shape[-1], draft.pick((4, 6, 8))
    kind = draft.pick(("GRUCell", "RNNCell", "LSTMCell"))
    layer = draft.layer(f"nn.{kind}({size}, {hidden})")
    name = draft.name("v")
    last = "[0]" if kind == "LSTMCell" else ""
    if value.ndim == 2:
        draft.run(f"h = {layer}({value})\nh = {layer}({value}, h)\n{name} = h{last}", name)
    else:
        draft.run(
            f"h = None\nfor k in range({value}.shape[1]):\n    h = {layer}({value}[:, k], h)\n{name} = h{last}", name
        )

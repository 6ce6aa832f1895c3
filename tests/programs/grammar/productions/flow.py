"""Control flow: branches on shapes, on values and on the mode, loops, layers in lists and dicts."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft
from tests.programs.grammar.productions.book import Book
from tests.programs.grammar.productions.layers import linear

BOOK = Book("flow")


@BOOK.add(2)
def branch(draft: Draft) -> None:
    """An ``if`` whose way the example decides."""
    value = draft.take(2, 3, 4)
    dim = draft.dim(value)
    first = draft.inputs[0][0]
    condition = draft.pick(
        (
            f"{value}.shape[{dim}] > {max(value.shape[dim] // 4 - 1, 0)}",
            f"{value}.dim() == {value.ndim}",
            f"{value}.shape[{dim}] % 2 == {value.shape[dim] % 2}",
            f"{value}.shape[{dim}] == {value.shape[dim]}",
            f"{value}.is_floating_point()",
            f"{first}.shape[0] > 1",
            f"{first}.sum() < 1e9",
            f"{value}.shape[{dim}] >= {value.shape[dim] // 2}",
            f"len({value}) == {value.shape[0]}",
            f"{value}.square().mean() >= 0.0",
            "not self.training",
            "self.training",
            f"{first}.abs().max().item() > 0.0",
            f"{value}.shape[{dim}] < 64",
            "torch.is_grad_enabled()",
            f"{value}.numel() > {value.tensor.numel() // 2}",
            f"{first}.float().mean() > 1e9",
        )
    )
    one, two = draft.pick(
        (
            ("{v}.relu()", "{v}.tanh()"),
            ("{v} * 2.0", "{v} + 1.0"),
            ("{v} + {v}.mean()", "{v}"),
            ("{v}.sigmoid()", "-{v}"),
        )
    )
    name = draft.name("v")
    one, two = one.format(v=value), two.format(v=value)
    draft.run(f"if {condition}:\n    {name} = {one}\nelse:\n    {name} = {two}", name)


@BOOK.add(2)
def loop(draft: Draft) -> None:
    """Layers in a list, run in a loop that may end early."""
    value = draft.take(2, 3)
    size, times = value.shape[-1], draft.pick((2, 3))
    name = draft.name("v")
    if draft.chance():
        layers = draft.layer(f"nn.ModuleList([nn.Linear({size}, {size}) for _ in range({times})])")
        body = f"{name} = layer({name}).tanh()"
        end = draft.pick(
            (
                "",
                f"    if {name}.shape[0] < 2:\n        break",
                f"    if not torch.isfinite({name}).all():\n        break",
            )
        )
        step = draft.pick((f"{name} = {name} + layer({name}).relu()", body, f"{name} = layer({name}) * 0.5 + {value}"))
        draft.run(f"{name} = {value}\nfor layer in {layers}:\n    {step}\n{end}".rstrip(), name)
    else:
        layer = draft.layer(f"nn.Linear({size}, {size})")
        head = draft.pick((f"for k in range({times}):", f"k = 0\nwhile k < {times}:\n    k += 1"))
        draft.run(f"{name} = {value}\n{head}\n    {name} = {layer}({name}).tanh()", name)


@BOOK.add(1)
def chosen(draft: Draft) -> None:
    """Layers in a dict, by key."""
    value = draft.take(2, 3)
    size, out = value.shape[-1], draft.width()
    layers = draft.layer(f'nn.ModuleDict({{"a": nn.Linear({size}, {out}), "b": nn.Linear({size}, {out})}})')
    draft.let(
        draft.pick(
            (
                f'{layers}["a"]({value})',
                f'{layers}["a"]({value}) + {layers}["b"]({value})',
                f"sum(layer({value}) for layer in {layers}.values())",
                f'{layers}["a" if {value}.shape[0] > 1 else "b"]({value})',
                f"torch.cat([layer({value}) for layer in {layers}.values()], -1)",
            )
        )
    )


@BOOK.add(2)
def sequential(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    out, hidden = draft.width(), draft.width()
    if value.ndim == 4:
        channels = value.shape[1]
        draft.let(
            f"{draft.layer(f'nn.Sequential(nn.Conv2d({channels}, {hidden}, 3, 1, 1), nn.BatchNorm2d({hidden}), nn.ReLU(), nn.Conv2d({hidden}, {out}, 1))')}({value})"
        )
    else:
        size = value.shape[-1]
        draft.let(
            f"{draft.layer(f'nn.Sequential(nn.Linear({size}, {hidden}), nn.GELU(), nn.Dropout(0.1), nn.Linear({hidden}, {out}))')}({value})"
        )


@BOOK.add(1)
def dense(draft: Draft) -> None:
    """Every layer reads all before it."""
    value = draft.take(2, 3)
    parts = [value]
    for _ in range(draft.pick((2, 3))):
        joined = draft.let(f"torch.cat([{', '.join(map(str, parts))}], -1)")
        parts.append(linear(draft, joined, draft.pick((4, 6))))
    draft.let(f"torch.cat([{', '.join(map(str, parts))}], -1)")


@BOOK.add(1)
def shared(draft: Draft) -> None:
    """One layer, or one weight, used several times."""
    value = draft.take(2, 3)
    size, out = value.shape[-1], draft.width()
    form = draft.pick(range(3))
    if form == 0:
        layer = draft.layer(f"nn.Linear({size}, {out})")
        draft.let(f"{layer}({value}) + {layer}({value}.tanh())")
    elif form == 1:
        up, down = draft.layer(f"nn.Linear({size}, {out})"), draft.layer(f"nn.Linear({out}, {size})")
        draft.set(f"{down}.weight = nn.Parameter({up}.weight.detach().T.contiguous())")
        draft.let(f"{down}({up}({value}).relu()) + {value}")
    else:
        one, two = draft.layer(f"nn.Linear({size}, {out})"), draft.layer(f"nn.Linear({size}, {out})")
        draft.set(f"{two}.weight = {one}.weight")
        draft.let(f"{one}({value}) * {two}({value}).sigmoid()")


@BOOK.add(1)
def mixture(draft: Draft) -> None:
    """Experts, weighed."""
    value = draft.take(2, 3)
    size, out, experts = value.shape[-1], draft.width(), draft.pick((2, 3))
    gate = draft.layer(f"nn.Linear({size}, {experts})")
    weights = draft.let(f"{gate}({value}).softmax(-1)")
    form = draft.pick(range(4))
    if form == 0:
        layers = draft.layer(f"nn.ModuleList([nn.Linear({size}, {out}) for _ in range({experts})])")
        draft.let(f"sum({weights}[..., k : k + 1] * layer({value}) for k, layer in enumerate({layers}))")
    elif form == 1:
        bank = draft.parameter(experts, size, out)
        draft.let(f'torch.einsum("...e,...i,eio->...o", {weights}, {value}, {bank})')
    elif form == 2 and value.ndim == 2:
        bank = draft.parameter(experts, size, out)
        draft.let(f"({value}.unsqueeze(0) @ {bank} * {weights}.T.unsqueeze(-1)).sum(0)")
    else:
        layer = draft.layer(f"nn.Linear({size}, {experts * out})")
        draft.let(f"({layer}({value}).unflatten(-1, ({experts}, {out})) * {weights}.unsqueeze(-1)).sum(-2)")


@BOOK.add(0.5)
def assertions(draft: Draft) -> None:
    value = draft.take(2, 3, 4)
    draft.do(
        draft.pick(
            (
                f"assert {value}.shape[0] == {value.shape[0]}",
                f"torch._assert({value}.dim() == {value.ndim}, '')",
                f"torch._assert_async(torch.isfinite({value}).all())",
                f"n = {value}.shape[-1]",
                f"assert {value}.shape[-1] > 0",
            )
        )
    )
    draft.let(f"{value}.relu()")

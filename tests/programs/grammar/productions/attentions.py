"""Attention and other products of activations, in all their spellings."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError, Value
from tests.programs.grammar.productions.book import Book

BOOK = Book("attentions")


def _tokens(draft: Draft) -> Value:
    value = draft.take(3, 4)
    if value.ndim == 4:
        return draft.let(f"{value}.flatten(2).transpose(1, 2)")
    return value


def _sizes(draft: Draft) -> tuple[int, int]:
    return draft.pick((1, 2, 2, 4)), draft.pick((2, 4, 4, 8))


def _split(draft: Draft, value: str, heads: int, dim: int) -> str:
    one, two = draft.pick(
        (
            (str(heads), str(dim)),
            (str(heads), "-1"),
            ("-1", str(dim)),
            (draft.constant(heads), draft.constant(dim)),
            (draft.constant(heads), "-1"),
        )
    )
    return draft.pick(
        (
            f"{value}.unflatten(-1, ({one}, {two})).transpose(1, 2)",
            f"{value}.view({value}.shape[0], {value}.shape[1], {one}, {two}).permute(0, 2, 1, 3)",
        )
    )


def _mixed(draft: Draft, q: Value, k: Value, v: Value) -> Value:
    """``[b, h, t, d]`` each."""
    dim = q.shape[-1]
    form = draft.pick(range(9))
    scale = draft.pick(
        (
            f" / {dim**0.5!r}",
            f" / math.sqrt({q}.shape[-1])",
            f" * {q}.shape[-1] ** -0.5",
            "",
            " * 0.5",
            f" / {draft.constant(dim)} ** 0.5",
            f" / torch.sqrt(torch.tensor(float({q}.shape[-1])))",
        )
    )
    if form <= 2:
        options = draft.pick(
            (
                "",
                "",
                ", is_causal=True",
                ", scale=0.5",
                f", scale={q}.shape[-1] ** -0.5",
                ", attn_mask=None, dropout_p=0.0",
            )
        )
        return draft.let(f"F.scaled_dot_product_attention({q}, {k}, {v}{options})")
    if form == 3:
        scores = draft.let(f'torch.einsum("bhid,bhjd->bhij", {q}, {k}){scale}')
        return draft.let(f'torch.einsum("bhij,bhjd->bhid", {scores}.softmax(-1), {v})')
    if form == 4:
        scores = draft.let(f"({q}[:, :, :, None] * {k}[:, :, None]).sum(-1){scale}")
        return draft.let(f"{scores}.softmax(-1) @ {v}")
    if form == 5:  # linear attention
        kernel = draft.pick(("F.elu({x}) + 1", "F.relu({x})", "{x}.sigmoid()", "{x}"))
        one, two = draft.let(kernel.format(x=q)), draft.let(kernel.format(x=k))
        return draft.let(f"{one} @ ({two}.mT @ {v}){scale}")
    if form == 6:
        scores = draft.let(
            f"torch.baddbmm({draft.parameter(1, 1, 1)}, {q}.flatten(0, 1), {k}.flatten(0, 1).mT, beta=1.0, alpha=0.5)"
        )
        return draft.let(f"({scores}.softmax(-1) @ {v}.flatten(0, 1)).unflatten(0, {q}.shape[:2])")
    if form == 7:
        scores = draft.let(f"({q}{scale}) @ {k}.transpose(-2, -1)")
        masked = draft.let(f"{scores} + torch.full({scores}.shape[-2:], -10.0, dtype={q}.dtype).triu(1)")
        return draft.let(f"{masked}.softmax(-1) @ {v}")
    scores = draft.let(f"{q} @ {k}.mT{scale}")
    return draft.let(f"F.dropout({scores}.softmax(dim=-1), 0.1, self.training) @ {v}")


@BOOK.add(4)
def attention(draft: Draft) -> None:
    value = _tokens(draft)
    heads, dim = _sizes(draft)
    width, size = heads * dim, value.shape[-1]
    if draft.chance():
        layer = draft.layer(f"nn.Linear({size}, {3 * width})")
        made = draft.let(f"{layer}({value})")
        form = draft.pick(range(3))
        if form == 0:
            pieces = draft.let(
                f"{made}.reshape({value}.shape[0], {value}.shape[1], 3, {heads}, {dim}).permute(2, 0, 3, 1, 4)"
            )
            q, k, v = (draft.let(f"{pieces}[{i}]") for i in range(3))
        else:
            text = draft.pick((f"{made}.chunk(3, -1)", f"{made}.split({draft.constant(width)}, -1)"))
            q, k, v = (
                draft.let(_split(draft, f"{text}[{i}]", heads, dim))
                if form == 1
                else draft.let(f"{text}[{i}].unflatten(-1, ({heads}, -1)).transpose(1, 2)")
                for i in range(3)
            )
    else:
        layers = [draft.layer(f"nn.Linear({size}, {width}, bias={draft.chance()})") for _ in range(3)]
        made = [draft.let(f"{layer}({value})") for layer in layers]
        q, k, v = (draft.let(_split(draft, str(x), heads, dim)) for x in made)
    mixed = _mixed(draft, q, k, v)
    joined = draft.let(f"{mixed}.transpose(1, 2).flatten(2)")
    if draft.chance(0.7):
        projected = draft.let(f"{draft.layer(f'nn.Linear({width}, {size})')}({joined})")
        draft.let(f"{value} + {projected}" if draft.chance() else f"{projected} * 1.0")


@BOOK.add(1)
def grouped(draft: Draft) -> None:
    """Several query heads for each key head."""
    value = _tokens(draft)
    pairs, repeats, dim = 2, 2, draft.pick((2, 4))
    size = value.shape[-1]
    layers = [draft.layer(f"nn.Linear({size}, {n * dim})") for n in (pairs * repeats, pairs, pairs)]
    q, k, v = (draft.let(f"{layer}({value}).unflatten(-1, (-1, {dim})).transpose(1, 2)") for layer in layers)
    if draft.chance():
        mixed = draft.let(f"F.scaled_dot_product_attention({q}, {k}, {v}, enable_gqa=True)")
    else:
        k, v = (draft.let(f"{x}.repeat_interleave({repeats}, 1)") for x in (k, v))
        mixed = _mixed(draft, q, k, v)
    draft.let(f"{mixed}.transpose(1, 2).flatten(2)")


@BOOK.add(1)
def module(draft: Draft) -> None:
    """PyTorch's own layers."""
    value = _tokens(draft)
    size = value.shape[-1]
    heads = draft.divisor(size)
    form = draft.pick(range(4))
    if form == 0:
        layer = draft.layer(f"nn.MultiheadAttention({size}, {heads}, batch_first=True, bias={draft.chance(0.8)})")
        draft.let(f"{layer}({value}, {value}, {value}, need_weights={draft.chance()})[0]")
    elif form == 1:
        layer = draft.layer(
            f"nn.TransformerEncoderLayer({size}, {heads}, 8, 0.0, batch_first=True, norm_first={draft.chance()})"
        )
        draft.let(f"{layer}({value})")
    elif form == 2:
        other = draft.take(where=lambda x: x.ndim == 3 and x.shape[-1] == size)
        layer = draft.layer(f"nn.TransformerDecoderLayer({size}, {heads}, 8, 0.0, batch_first=True)")
        draft.let(f"{layer}({value}, {other})")
    else:
        layer = draft.layer(f"nn.MultiheadAttention({size}, {heads}, kdim={size}, vdim={size}, batch_first=True)")
        draft.let(f"{layer}({value}, {value}, {value})[0]")


@BOOK.add(2)
def products(draft: Draft) -> None:
    """Two activations are contracted."""
    value = draft.take(2, 3)
    out = draft.width()
    a, b = (draft.let(f"{draft.layer(f'nn.Linear({value.shape[-1]}, {out})')}({value})") for _ in range(2))
    if draft.chance(0.4):
        a, b = draft.let(draft.pick(("F.relu({x})", "{x}.sigmoid()", "F.elu({x}) + 1.0", "{x}.tanh()")).format(x=a)), b
    if value.ndim == 2:
        made = draft.let(
            draft.pick(
                (
                    f"({a} * {b}).sum(-1, keepdim=True)",
                    f"({a} * {b}).sum(1, keepdim=True) / math.sqrt({out})",
                    f"({a} * {b}).sum(1, keepdim=True) / {a}.shape[1] ** 0.5",
                    f"{a} @ {b}.T",
                    f'torch.einsum("bi,bi->b", {a}, {b}).unsqueeze(1)',
                    f"torch.cdist({a}, {b}, 2.0)",
                    f"F.cosine_similarity({a}, {b}, 1).unsqueeze(1)",
                    f"{a}.unsqueeze(1).bmm({b}.unsqueeze(2)).flatten(1)",
                    f"torch.stack([torch.dot({a}[i], {b}[i]) for i in range(2)]).unsqueeze(1)",
                    f"torch.stack([torch.vdot({a}[i], {b}[i]) for i in range(2)]).unsqueeze(1)",
                    f"torch.stack([torch.mv({a}, {b}[i]) for i in range(2)])",
                    f"torch.outer({a}[0], {b}[1])",
                    f"torch.kron({a}, {b})",
                    f"torch.inner({a}, {b})",
                    f"torch.tensordot({a}, {b}, ([1], [1]))",
                    f"F.pairwise_distance({a}, {b}, 2.0, 1e-06).unsqueeze(1)",
                    f"torch.addmv({b}[:, 0], {a}, {b}[0]).unsqueeze(1)",
                )
            )
        )
    else:
        made = draft.let(
            draft.pick(
                (
                    f"{a} @ {b}.mT",
                    f"torch.bmm({a}, {b}.transpose(1, 2))",
                    f'torch.einsum("bid,bjd->bij", {a}, {b})',
                    f"{a}.mT @ {b}",
                    f"({a} * {b}).sum(-1)",
                    f"{b}.mT.matmul({a}) / {out}",
                    f'torch.einsum("btd,btd->bt", {a}, {b})',
                    f'torch.einsum("bid,bjd->bij", {a}, {b}) / {a}.shape[-1] ** 0.5',
                    f"torch.cdist({a}, {b})",
                    f"torch.baddbmm({a} @ {a}.mT, {a}, {b}.mT, beta=0.5, alpha=0.5)",
                )
            )
        )
    if made.ndim < 2:
        raise NoFitError

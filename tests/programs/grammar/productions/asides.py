"""Operations on what never shrinks, with all their arguments written out: numbers that may come to follow a size."""

from __future__ import annotations

from tests.programs.grammar.draft import Draft, NoFitError
from tests.programs.grammar.following import pure
from tests.programs.grammar.productions.book import Book

BOOK = Book("asides")
TWO = (
    "{v}[:, 0:3]", "{v}[:, 1:5:2]", "{v}[:, -4:-1]", "{v}.narrow(1, 0, 3)", "{v}.narrow(1, 1, 2)", "{v}.roll(1, 1)", "{v}.roll((1, 2), (0, 1))",
    "{v}.topk(2, 1, True, True).values.sum(1, True)", "{v}.topk(2, 1).values[:, 1:2]", "{v}.kthvalue(2, 1)[0].unsqueeze(1)", "{v}.cumsum(1)[:, 2:4]",
    "{v}.cumprod(1)", "F.pad({v}, (1, 0), 'constant', 0.0)[:, :4]", "F.pad({v}, (1, 2), value=0.5)", "F.pad({v}, (-1, 0))[:, :3]",
    "F.group_norm({v}, 2, None, None, 1e-05)", "F.layer_norm({v}, ({n},), None, None, 1e-05)", "F.rms_norm({v}, ({n},), None, 1e-06)",
    "F.normalize({v}, 2.0, 1, 1e-12)", "{v}.norm(2, 1, True)", "torch.linalg.vector_norm({v}, 2, 1, True)", "{v}.std(1, correction=1, keepdim=True)",
    "torch.var({v}, 1, correction=0, keepdim=True)", "F.avg_pool1d({v}.unsqueeze(1), 2, 2, 0, False, True).flatten(1)", "F.max_pool1d({v}.unsqueeze(1), 2, 2, 0, 1).flatten(1)[:, :2]",
    "F.avg_pool1d({v}[:, None], 3, 1, 1).mean(-1)", "F.adaptive_avg_pool1d({v}.unsqueeze(1), 2).flatten(1).sum(1, True)", "F.lp_pool1d({v}[:, None], 2.0, 2, 2).flatten(1)",
    "{v}.unfold(1, 2, 1).sum(1)", "{v}.unfold(1, 3, 2)[:, 0]", "{v}.tril(0)", "{v}.triu(1)", "{v}.diagonal(0, 0, 1).unsqueeze(0)", "{v}.repeat(1, 2)[:, :8]", "{v}.tile(1, 2).sum(1, True)",
    "{v}.repeat_interleave(2, 1)[:, :6]", "{v}.chunk(2, 1)[0]", "{v}.tensor_split(2, 1)[1]", "{v}.split(2, 1)[0]", "{v}.split([2, {n} - 2], 1)[1]", "{v}.select(1, 2).unsqueeze(1)",
    "{v}[:, 3].unsqueeze(1)", "{v}[:, [0, 2]]", "{v}.index_select(1, torch.tensor([0, 2]))", "{v}.index_fill(1, torch.tensor([1]), 0.5)", "{v}.flip(1)", "{v}.scatter(1, torch.tensor([[0], [2]]), 0.5)",
    "{v}.sort(1, False)[0]", "{v}.quantile(0.5, 1, True)", "F.softplus({v}, 1.0, 20.0)", "F.elu({v}, 1.0)", "F.celu({v}, 1.0)", "F.threshold({v}, 0.1, 0.2)", "F.hardtanh({v}, -1.0, 1.0)",
    "F.hardshrink({v}, 0.5)", "F.softshrink({v}, 0.5)", "F.leaky_relu({v}, 0.1)", "F.rrelu({v}, 0.1, 0.3, False)", "{v}.clamp(-1.0, 1.0)", "{v}.clamp_min(0.1)", "{v}.pow(2)", "{v} ** 2", "{v}.fmod(1.0)",
    "{v}.remainder(1.0)", "torch.lerp({v}, {v}.tanh(), 0.3)", "torch.addcmul({v}, {v}, {v}, value=0.5)", "{v} * 0.5", "{v} / 2.0", "{v} + 1.0", "{v} - 2", "3.0 - {v}", "torch.add({v}, {v}.sin(), alpha=0.5)",
    "{v}.masked_fill({v} > 0.5, 0.0)", "torch.where({v} > 0.0, {v}, 0.1)", "torch.logit({v}.sigmoid(), 0.01)", "{v}.nan_to_num(0.0, 1.0, -1.0)", "{v}.round(decimals=1)", "torch.full_like({v}, 0.5) + {v}",
    "{v} + torch.arange(3, {n} + 3)", "{v} + torch.linspace(0.0, 1.0, {n})", "{v} + torch.full(({n},), 0.5)", "{v} + torch.arange(0, 2 * {n}, 2)", "{v} + torch.logspace(0.0, 1.0, {n}, 10.0)", "{v} @ torch.eye({n}, 3)",
    "torch.cat([{v}[:, :2], {v}[:, 2:4]], 1) * 2", "torch.stack([{v}, {v}], 1)[:, 1]", "{v}.unsqueeze(1).expand(-1, 2, -1).sum(1)", "{v}.unflatten(1, (2, -1))[:, 1]", "F.one_hot({v}.argmax(1), {n} + 2).double()",
    "torch.cdist({v}, {v}, 2.0)", "F.cosine_similarity({v}, {v}.sin(), 1, 1e-08).unsqueeze(1)", "F.pairwise_distance({v}, {v}.sin(), 2.0, 1e-06).unsqueeze(1)", "F.huber_loss({v}, {v}.sin(), delta=1.0) + {v}",
    "F.smooth_l1_loss({v}, {v}.sin(), beta=1.0, reduction='none')", "F.cross_entropy({v}, torch.tensor([0, 1]), label_smoothing=0.1) + {v}", "F.cross_entropy({v}, torch.tensor([0, 1]), ignore_index=1) + {v}",
    "F.local_response_norm({v}.unsqueeze(2), 3, 0.01, 0.75, 1.0)[..., 0]", "torch.fft.rfft({v}, 4, 1).abs()", "torch.fft.irfft({v}, 4, 1)", "torch.fft.fft({v}, dim=1).real[:, :2]", "F.softmax({v}, 1) * 2.0",
    "torch.bucketize({v}, torch.linspace(-1.0, 1.0, 4), right=False).double()", "torch.histc({v}, 4, -1.0, 1.0).expand(2, -1)", "torch.bincount(torch.tensor([0, 1, 1]), minlength=4).double().expand(2, -1)",
    "{v}.argmax(1, True).double()", "{v}.amax(1, True)", "{v}.logsumexp(1, True)", "{v}.view(2, -1, 1).squeeze(2)", "{v}.reshape(2, 1, -1)[:, 0]", "{v}.as_strided((2, 3), ({n}, 1), 0)", "{v}.transpose(0, 1).transpose(1, 0)",
    "F.glu(torch.cat([{v}, {v}], 1), 1)", "F.gumbel_softmax({v}, 1.0, False, 1e-10, 1) * 0.0 + {v}", "{v}.diff(1, 1)", "torch.polygamma(1, {v}.abs() + 1.0)", "{v}.take(torch.tensor([0, 3])).expand(2, -1)",
    "{v}.gather(1, torch.tensor([[0, 1], [2, 0]]))", "{v}.sum(1, True) * 0.1", "{v}.mean(1, True)", "{v}.softmax(1).cumsum(1)", "torch.trapezoid({v}, dx=1.0, dim=1).unsqueeze(1)", "{v}.movedim(0, 1).movedim(1, 0)",
    "F.alpha_dropout({v}, 0.3, False)", "F.dropout({v}, 0.1, False)", "torch.outer({v}[0], {v}[1])[:2]", "{v}.index_add(1, torch.tensor([0]), {v}[:, 1:2], alpha=0.5)", "torch.renorm({v}, 2.0, 0, 1.0)", "{v}.mode(1)[0].unsqueeze(1)",
    "torch.slice_scatter({v}, {v}[:, :2], 1, 0, 2, 1)", "torch.select_scatter({v}, {v}[:, 0], 1, 1)", "torch.tril_indices(2, 3, 0)[:, :3].double()", "{v}.floor_divide(0.5)", "torch.sgn({v}) * 3",
)  # fmt: skip
FOUR = (
    "F.conv2d({v}, {w}, None, 1, 1, 1, 1)", "F.conv2d({v}, {w}, None, (1, 2), (0, 1), 1)", "F.conv_transpose2d({v}, {t}, None, 2, 1, 0, 1, 1)", "F.avg_pool2d({v}, 2, 2, 0, False, True)", "F.avg_pool2d({v}, 3, 1, 1, divisor_override=2)",
    "F.max_pool2d({v}, 2, 2, 0, 1)", "F.max_pool2d({v}, 3, 2, 1, 1, True)", "F.adaptive_avg_pool2d({v}, 2)", "F.adaptive_max_pool2d({v}, (2, 3))", "F.interpolate({v}, size=4, mode='bilinear')", "F.interpolate({v}, scale_factor=2.0, mode='nearest')",
    "F.interpolate({v}, size=(3, 4), mode='bicubic', align_corners=False)", "F.unfold({v}, 2, 1, 0, 2).sum(1)", "F.fold(F.unfold({v}, 2, 1, 0, 2), (6, 6), 2, 1, 0, 2)", "F.pad({v}, (1, 1, 1, 1), 'reflect')", "F.pad({v}, (1, 0, 0, 1), 'replicate')",
    "F.pad({v}, (1, 1, 1, 1), 'circular')", "F.pixel_unshuffle({v}, 2)", "F.pixel_shuffle({v}.repeat(1, 4, 1, 1), 2)", "F.channel_shuffle({v}, 1)", "F.instance_norm({v}, None, None, None, None, True, 0.1, 1e-05)", "F.group_norm({v}, 1, None, None, 1e-05)",
    "F.grid_sample({v}, {v}[:, :2].movedim(1, -1).tanh(), align_corners=False)", "{v}.roll((1, 2), (2, 3))", "{v}[:, :, ::2, 1::2]", "{v}[:, :, 1:5, :4]", "torch.rot90({v}, 1, (2, 3))", "{v}.flip(3)", "{v}.permute(0, 2, 3, 1)[..., 1]", "{v}.transpose(2, 3)",
    "{v}.flatten(2, 3)[..., 4:9]", "{v}.mean((2, 3), True)", "{v}.sum((1, 2))", "{v}.amax((2, 3))", "{v}.unfold(2, 2, 2).sum(-1)", "F.local_response_norm({v}, 2, 0.1, 0.75, 1.0)", "{v}.movedim(1, 3)[:, 2]", "F.lp_pool2d({v}, 2.0, 2, 2)", "{v}.diagonal(1, 2, 3)",
    "F.dropout2d({v}, 0.1, False)", "torch.fft.rfft2({v}, (4, 4)).abs()", "F.batch_norm({v}, torch.zeros(3), torch.ones(3), None, None, False, 0.1, 1e-05)", "F.scaled_dot_product_attention({v}, {v}, {v}, scale=0.5)", "F.scaled_dot_product_attention({v}, {v}, {v}, is_causal=False)",
    "F.max_pool2d({v}, 2, return_indices=True)[0]", "{v}.unflatten(2, (2, 3)).sum(3)", "{v}.chunk(3, 2)[1]", "{v}.split(2, 3)[1]", "torch.cummax({v}, 2)[0]",
)  # fmt: skip


@BOOK.add(3)
def aside(draft: Draft) -> None:
    """One operation on an input, added to what the program returns."""
    lone = pure(draft.statements)
    value = draft.take(2, 3, 4, of=[draft.values[name] for name in draft.values if name in lone])
    if value.ndim == 4 and value.shape[1] == 3:
        text = draft.pick(FOUR)
        shape, turned = (4, 3, 3, 3), (3, 4, 3, 3)
        names = {
            name: draft.parameter(*size) for name, size in (("w", shape), ("t", turned)) if "{" + name + "}" in text
        }
        draft.let(text.format(v=value, **names))
        return
    flat = value if value.ndim == 2 else draft.let(f"{value}.flatten(1)[:, :{min(8, value.tensor[0].numel())}]")
    if flat.shape[1] < 4:
        raise NoFitError
    draft.let(draft.pick(TWO).format(v=flat, n=flat.shape[1]))

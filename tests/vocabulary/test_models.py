"""Models with fewer tokens and fewer classes compute what they computed, of those that stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunekit as pk
from prunekit.plugin import LayerType, Opaque as OpaqueLayer, OpRule, hookimpl
from tests.vocabulary.training import as_data, data_of, from_data, made

IDS = 40
KEEP = [0, 1, 3, 4, 9, 12, 20, 21, 33, 38]


def whole_numbers(model: nn.Module) -> nn.Module:
    """Fills a model with small whole numbers: sums of them are exact in any order, so that bits can be compared."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.randint(-3, 4, tensor.shape).to(tensor.dtype)
    return model


class Language(nn.Module):
    """Embedding, a layer, and a head with a bias for each id."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, 8)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, IDS)
        self.register_buffer("offsets", torch.randn(1, IDS))
        if tied:
            self.head.weight = self.embed.weight
        whole_numbers(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(ids)).relu()) + self.offsets


class Followed(Language):
    """What programs do with ids: padding, a shift to the right, pooling where the last one is."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        self.embed = nn.Embedding(IDS, 8, padding_idx=38)
        self.head.weight = self.embed.weight
        whole_numbers(self)
        self.pad, self.start, self.count = 38, 12, IDS

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1].clone()
        shifted[:, 0] = self.start
        shifted = shifted.masked_fill(shifted == -100, self.pad)
        mask = (ids != self.pad) & (ids < self.count)
        hidden = self.layer(self.embed(ids) * mask[..., None] + self.embed(shifted.to(torch.int32)))
        last = ids.argmax(-1)
        return self.head(hidden), hidden[torch.arange(len(ids)), last]


def prune(model: nn.Module, ids: torch.Tensor, keep: Any = KEEP, **arguments: Any) -> tuple[Any, Any, Any]:
    """Prunes a model; returns the result with what the original gives for ids, and the pruned one for the new ids."""
    with torch.no_grad():
        before = model(ids)
        result = pk.prune_vocabulary(model, keep, ids, **arguments)
        return result, before, model(result.ids.of(ids))


def some(*shape: int) -> torch.Tensor:
    return torch.tensor(KEEP)[torch.randint(len(KEEP), shape)]


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_ids_that_stay_are_the_same_bits(tied: bool) -> None:
    result, before, after = prune(Language(tied).eval(), some(3, 5))
    assert after.shape == (3, 5, len(KEEP))
    assert torch.equal(after, before[..., KEEP])
    assert dict(result) == {old: new for new, old in enumerate(KEEP)}
    assert result[20] == 6
    assert result.model.embed.num_embeddings == result.model.head.out_features == len(KEEP)
    assert result.model.offsets.shape == (1, len(KEEP))
    assert (result.tables, result.outputs) == (("embed.weight",), ("",))


def test_everything_that_programs_do_with_ids_in_order_follows() -> None:
    model = Followed().eval()
    ids = some(4, 6)
    ids[1, 3:] = 38
    result, (logits, pooled), (few, same) = prune(model, ids)
    assert result.ids.kept == (*KEEP, 39)  # alone behind those that the program names
    assert torch.equal(few, logits[..., [*KEEP, 39]])
    assert torch.equal(same, pooled)
    assert (model.pad, model.start, model.count, model.embed.padding_idx) == (9, 5, 11, 9)


def test_padding_is_among_the_ids() -> None:
    class Padded(Language):
        def __init__(self) -> None:
            super().__init__()
            self.fill = 33

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(F.pad(F.pad(ids, (1, 0), value=self.fill), (0, 1)))

    model = Padded()
    result, before, after = prune(model.eval(), torch.tensor([[3, 9, 33], [9, 3, 3]]), [3, 9, 33])
    assert result.ids.kept == (0, 3, 9, 33, 34)
    assert torch.equal(after, before[..., list(result.ids.kept)])
    assert model.fill == 3


def test_ids_that_the_program_names_stay() -> None:
    result, before, after = prune(Followed().eval(), torch.tensor([[3, 4, 9]]), [3, 4, 9])
    assert result.ids.kept == (0, 3, 4, 9, 12, 13, 38, 39)
    assert result.added == {
        0: "the program",
        12: "the program",
        13: "one id between those that the program names has to stay",
        38: "the program",
        39: "the program",
    }
    assert torch.equal(after[0], before[0][..., list(result.ids.kept)])


def test_a_plan_is_stored_and_applied_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Followed().eval(), some(2, 5)
    whole = copy.deepcopy(model)
    pk.save(whole, tmp_path / "whole.safetensors", plan=pk.Plan())
    result, before, _ = prune(model, ids)
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    loaded = pk.load(Followed().eval(), tmp_path / "small.safetensors")
    applied = pk.Plan.from_json(result.plan.to_json()).apply(copy.deepcopy(whole))
    pk.prune_checkpoint(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors", result.plan)
    cut = pk.load(Followed().eval(), tmp_path / "cut.safetensors")
    for other in (loaded, applied, cut):
        assert torch.equal(other(result.ids.of(ids))[0], before[0][..., [*KEEP, 39]])


def test_a_configuration_that_the_program_reads_follows() -> None:
    class Settings:
        def __init__(self) -> None:
            self.pad_token_id, self.eos_token_id, self.vocab_size, self.bad_words_ids = 33, [38, 1], IDS, [[5], [9]]

    class Configured(Language):
        def __init__(self) -> None:
            super().__init__()
            self.config = Settings()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * (ids != self.config.pad_token_id)[..., None]

    model, ids = Configured().eval(), some(3, 4)
    ids[0, 2:] = 33
    fresh = copy.deepcopy(model)
    result, before, after = prune(model, ids)
    assert torch.equal(after, before[..., KEEP])
    expected = {"pad_token_id": 8, "eos_token_id": [9, 1], "vocab_size": len(KEEP)}
    assert vars(model.config) == {**expected, "bad_words_ids": [[4]]}
    assert vars(pk.Plan.from_json(result.plan.to_json()).apply(fresh).config) == vars(model.config)


def test_optimizers_follow() -> None:
    model = Language(tied=True)
    optimizer = torch.optim.Adam(model.parameters())
    model(some(2, 3)).sum().backward()
    optimizer.step()
    average = optimizer.state[model.embed.weight]["exp_avg"]
    pk.prune_vocabulary(model, KEEP, some(2, 3), optimizer=optimizer)
    assert torch.equal(optimizer.state[model.embed.weight]["exp_avg"], average[KEEP])


def test_ids_beyond_those_that_stay_may_be_among_the_example_inputs() -> None:
    model = Language().eval()
    result = pk.prune_vocabulary(model, torch.tensor(KEEP), torch.randint(IDS, (2, 7)))
    assert result.ids.kept == tuple(KEEP)


def test_only_the_embedding_shrinks_where_there_are_no_logits() -> None:
    class Encoder(Language):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.layer(self.embed(ids))

    result, before, after = prune(Encoder().eval(), some(2, 3))
    assert torch.equal(after, before)
    assert result.outputs == ()
    assert result.model.head.out_features == IDS


def test_hidden_states_of_the_same_size_are_no_logits() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(IDS, IDS), nn.Linear(IDS, IDS)
            self.head = nn.Linear(IDS, IDS, bias=False)

        def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.layer(self.embed(ids))
            return {"hidden": hidden, "logits": self.head(hidden)}

    result, before, after = prune(whole_numbers(Wide()).eval(), some(2, 3))
    assert result.outputs == ("logits",)
    assert torch.equal(after["hidden"], before["hidden"])
    assert torch.equal(after["logits"], before["logits"][..., KEEP])


def uses(forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> Language:
    """A model that does something else with ids."""
    model = type("Other", (Language,), {"forward": forward})()
    assert isinstance(model, Language)
    return model.eval()


REFUSED: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "hashed": (lambda m, ids: m.head(m.embed((ids * 7) % IDS) + m.embed(ids)), "aten::mul.Tensor"),
    "counted": (lambda m, ids: m.head(m.embed(ids)) * ids.float().mean(), "aten::mean"),
    "in a list": (lambda m, ids: m.head(m.embed(ids)) * torch.isin(ids, torch.tensor([1, 2]))[..., None], "isin"),
    "offset": (lambda m, ids: m.head(m.embed(ids + 1)) + m.embed(ids).sum(), "aten::add.Tensor"),
    "greedy": (lambda m, ids: m.head(m.embed(m.head(m.embed(ids)).argmax(-1))), "aten::argmax in the model"),
    "rounded": (lambda m, ids: m.head(m.embed(ids)) * (ids.half() > 3)[..., None], "token ids are rounded"),
    "in other bits": (
        lambda m, ids: m.head(m.embed(ids.view(torch.int32)[:, ::2])) + m.embed(ids).sum(),
        "aten::view.dtype",
    ),
    "in a list of Python": (
        lambda m, ids: m.head(m.embed(ids)) * len(ids.tolist()),
        "its values leave PyTorch by tolist",
    ),
    "mixed": (
        lambda m, ids: m.head(m.embed(torch.cat([ids, torch.arange(2).expand(len(ids), 2)], 1))),
        "token ids are mixed with other numbers",
    ),
    "another table": (lambda m, ids: m.head(m.embed(ids) + m.layer.weight[ids % 8]), "aten::remainder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reads_ids_as_numbers_is_refused_with_the_operation(case: str) -> None:
    forward, text = REFUSED[case]
    model = uses(forward)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune_vocabulary(model, KEEP, some(2, 3), table="embed")
    assert text in str(caught.value)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_constant_that_is_written_into_the_program_is_refused() -> None:
    model = uses(lambda m, ids: m.head(m.embed(ids)) * (ids != 20)[..., None])
    with pytest.raises(
        pk.RehearsalError, match=r"aten::ne.Scalar in the model: argument other is 20, the axes predict 6"
    ):
        pk.prune_vocabulary(model, KEEP, some(2, 3))


def test_a_constant_that_stays_what_it_is_isnt() -> None:
    model = uses(lambda m, ids: m.head(m.embed(ids)) * (ids != 1)[..., None])
    _, before, after = prune(model, some(2, 6))
    assert torch.equal(after, before[..., KEEP])


def test_what_depends_on_all_logits_is_said() -> None:
    model = uses(lambda m, ids: m.head(m.embed(ids)).log_softmax(-1))
    result, before, after = prune(model, some(2, 6))
    assert "aten::log_softmax.int in the model depends on all of them" in str(result)
    assert torch.allclose(after, before[..., KEEP].log_softmax(-1), atol=1e-6)


def test_a_wrong_result_is_undone() -> None:
    class Cheating(Language):
        table: torch.Tensor

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + (0.5 if len(self.embed.weight) < IDS else 0.0) * 1.0

    model = Cheating().eval()
    with pytest.raises((pk.VerificationError, pk.RehearsalError)):
        pk.prune_vocabulary(model, KEEP, some(2, 3))
    assert model.embed.weight.shape == (IDS, 8)


class Two(nn.Module):
    """A source and a target language with a vocabulary each."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(IDS, 8), nn.Embedding(IDS, 8), nn.Linear(8, IDS)
        self.vocab_size = IDS

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.target(target) + self.source(source).sum(1, keepdim=True))


def test_of_two_vocabularies_one_is_named() -> None:
    inputs = (some(2, 3), some(2, 4))
    with pytest.raises(pk.ArgumentError, match=r"inputs look rows up in source\.weight, target\.weight"):
        pk.prune_vocabulary(Two(), KEEP, inputs)
    model = whole_numbers(Two()).eval()
    before = model(*inputs)
    result = pk.prune_vocabulary(model, KEEP, inputs, table="source")
    assert (result.outputs, model.head.out_features, model.vocab_size) == ((), IDS, IDS)
    assert result.notes == ("configurations aren't changed: target.weight is of the same size",)
    assert torch.equal(model(result.ids.of(inputs[0]), inputs[1]), before)
    again = pk.prune_vocabulary(model, KEEP, (result.ids.of(inputs[0]), inputs[1]), table="target.weight", outputs=[""])
    assert again.outputs == ("",)
    assert model.target.num_embeddings == model.head.out_features == len(KEEP)
    after = model(result.ids.of(inputs[0]), again.ids.of(inputs[1]))
    assert torch.equal(after, before[..., KEEP])


def test_texts_are_kept_by_their_tokens() -> None:
    torch.manual_seed(0)
    tokenizer = made("byte_level")
    size = tokenizer.get_vocab_size() + 8  # a table with rows for no token
    model = nn.Sequential(nn.Embedding(size, 4), nn.Linear(4, size)).eval()
    text = "return the value of the name"
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        before = model(ids)
        result = pk.prune_vocabulary(model, [text], ids, tokenizer=tokenizer)
        assert result.tokenizer is not None
        new = torch.tensor([from_data(result.tokenizer).encode(text).ids])
        assert torch.equal(model(new), before[..., list(result.ids.kept)])
    assert len(result) < 300
    assert result.added[tokenizer.token_to_id("<|pad|>")] == "the tokenizer"
    assert model[0].num_embeddings == len(result) == len(result.tokenizer["model"]["vocab"]) + 2
    assert data_of("byte_level") == tokenizer.to_str()


def test_words_that_become_known_are_counted() -> None:
    data = as_data(made("word_piece"))
    data["added_tokens"], data["post_processor"] = [], None
    data["model"]["vocab"] = {"<unk>": 0, "ab": 1, "a": 2, "##bc": 3, "d": 4}
    texts = ["abc", "d"]  # of the first word nothing follows "ab"
    result = pk.prune_vocabulary(Language(), [*texts, 2, 3], some(2, 3), tokenizer=data)
    assert result.ids.kept == (0, 2, 3, 4)
    assert result.notes == ("1 of 2 texts are split otherwise: unknown words have become known",)


@pytest.mark.parametrize(
    ("keep", "arguments", "text"),
    [
        ([], {}, "it is empty"),
        ([1, 40], {}, r"\[40\], and it has 40"),
        ([1, -1], {}, "got -1"),
        ([1, 2.5], {}, "got 2.5"),
        ([1, True], {}, "got True"),
        (None, {}, "got None"),
        (["text"], {}, "pass tokenizer="),
        (list(range(IDS)), {}, "40 of 40 are kept"),
        (KEEP, {"table": "embad"}, "known: embed.weight"),
        (KEEP, {"table": "layer"}, "No input of the model holds ids of this table"),
        (KEEP, {"outputs": ["logits"]}, "The model has no such output"),
        (KEEP, {"tokenizer": 3}, "tokenizer is a tokenizer of the tokenizers library"),
    ],
)
def test_wrong_arguments_are_said(keep: Any, arguments: Any, text: str) -> None:
    with pytest.raises(pk.ArgumentError, match=text):
        pk.prune_vocabulary(Language(), keep, some(2, 3), **arguments)


def test_ids_may_be_integers_of_numpy() -> None:
    result = pk.prune_vocabulary(Language(), numpy.array(KEEP), some(2, 3))
    assert result.ids.kept == pk.prune_vocabulary(Language(), KEEP, some(2, 3)).ids.kept


def test_inputs_are_needed_where_the_model_has_none() -> None:
    with pytest.raises(pk.ArgumentError, match=r"prune_vocabulary\(model, keep, inputs\)"):
        pk.prune_vocabulary(Language(), KEEP)


def test_ids_that_left_are_no_ids() -> None:
    result = pk.prune_vocabulary(Language(), KEEP, some(2, 3))
    assert result.ids.of(torch.tensor([38, -100, 3])).tolist() == [9, -100, 2]
    with pytest.raises(pk.ArgumentError, match=r"\[2, 5\] aren't kept"):
        result.ids.of(torch.tensor([5, 2, 3]))
    assert 5 not in result
    assert result.get(5) is None


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.num_classes = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), 10

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x).relu(), 1).flatten(1))


def test_classes_leave_a_classifier(tmp_path: Path) -> None:
    model, x = Classifier().eval(), torch.randn(2, 3, 8, 8)
    before = model(x)
    result = pk.prune_classes(model, [7, 2, 3], x)
    assert dict(result) == {2: 0, 3: 1, 7: 2}
    assert torch.allclose(model(x), before[:, [2, 3, 7]], atol=1e-6)
    assert model.head.out_features == model.num_classes == 3
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    assert torch.equal(pk.load(Classifier().eval(), tmp_path / "small.safetensors")(x), model(x))


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ([], "keep is a list of classes"),
        (["cat"], r"keep is a list of classes\.\n  why: got 'cat'"),
        ([2, True], "got True"),
        ([3, 10], r"keep names classes that the model doesn't have\.\n  why: \[10\], and it has 10"),
        (range(10), "Every class would stay"),
    ],
)
def test_messages_of_classes_speak_of_classes(keep: Any, text: str) -> None:
    with pytest.raises(pk.ArgumentError, match=text):
        pk.prune_classes(Classifier().eval(), keep, torch.randn(2, 3, 8, 8))


def test_reports_of_classes_speak_of_classes() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert str(pk.prune_classes(Classifier().eval(), [7, 2, 3], x)).startswith("classes             10 ->")

    class Chosen(Classifier):
        def forward(self, x: torch.Tensor) -> Any:
            logits = super().forward(x)
            return logits.topk(2)[0], logits

    with pytest.raises(
        pk.NothingToPruneError, match=r"Classes can't leave this program\.[^$]*it chooses classes itself"
    ):
        pk.prune_classes(Chosen().eval(), [1, 2, 3], x)


@pytest.mark.parametrize("cut", [lambda y: y[:, -1], lambda y: y[:, -1:], lambda y: y[:, [0, -1]]])
def test_logits_of_some_positions_are_logits(cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = uses(lambda m, ids: cut(m.head(m.embed(ids))))
    result, before, after = prune(model, some(2, 6))
    assert result.outputs == ("",)
    assert torch.equal(after, before[..., KEEP])
    classes = uses(lambda m, ids: cut(m.head(m.embed(ids))))
    ids = some(2, 6)
    expected = classes(ids)[..., [3, 7]]
    assert dict(pk.prune_classes(classes, [7, 3], ids)) == {3: 0, 7: 1}
    assert torch.equal(classes(ids), expected)


def test_labels_are_left_out_of_example_inputs() -> None:
    class Trained(Language):
        def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            logits = super().forward(ids)
            return logits if labels is None else (F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)

    model, ids = Trained().eval(), some(2, 5)
    before = model(ids)
    result = pk.prune_vocabulary(model, KEEP, {"ids": ids, "labels": ids})
    assert result.notes == ("labels of the example inputs were left out",)
    new = result.ids.of(ids)
    assert torch.equal(model(new, new)[1], before[..., KEEP])
    with pytest.raises(pk.PrunekitError):  # somebody who runs the model reads them
        pk.prune_vocabulary(
            Trained().eval(), KEEP, {"ids": ids, "labels": ids}, forward_fn=lambda model, inputs: model(**inputs)
        )


def test_of_several_outputs_with_classes_some_are_named() -> None:
    class Heads(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            pooled = F.adaptive_avg_pool2d(self.body(x).relu(), 1).flatten(1)
            return {"kind": self.head(pooled), "colour": self.other(pooled)}

    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(pk.ArgumentError, match="found: 'kind', 'colour'"):
        pk.prune_classes(Heads().eval(), [0, 1], x)
    model = Heads().eval()
    pk.prune_classes(model, [0, 3], x, outputs=["colour"])
    assert (model.head.out_features, model.other.out_features) == (10, 2)


def test_classes_of_pictures_leave() -> None:
    class Segmenter(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(8, 10, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).relu())

    model, x = whole_numbers(Segmenter()).eval(), torch.randint(3, (1, 3, 8, 8)).float()
    before = model(x)
    result = pk.prune_classes(model, [9, 4], x)
    assert torch.equal(model(x), before[:, [4, 9]])
    assert result.model.head.out_channels == 2


class Closed(Language):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids) + self.embed(self.layer(ids)))


def test_what_isnt_looked_into_reads_ids() -> None:
    class Opaque(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return ids * 2 % 7

    class Plugin:
        @staticmethod
        @hookimpl
        def prunekit_layer_types() -> dict[Any, Any]:
            rule = OpRule(lambda call: list(call["ids"].axes))
            return {Opaque: LayerType("opaque", opaque=OpaqueLayer(rule))}

    model = Closed()
    model.layer = Opaque()  # type: ignore[assignment]
    registry = pk.Registry(extra={"opaque": Plugin()})
    with pytest.raises(pk.NothingToPruneError, match="opaque::"):
        pk.prune_vocabulary(model.eval(), KEEP, some(2, 3), registry=registry)


def test_a_pruned_vocabulary_is_pruned_on() -> None:
    model, ids = Language().eval(), some(2, 3)
    fresh = copy.deepcopy(model)
    first = pk.prune_vocabulary(model, KEEP, ids)
    second = pk.prune(model, first.ids.of(ids), ratio=0.5)
    both = pk.Plan.from_json(first.plan.then(second.plan).to_json())
    assert torch.equal(both.apply(fresh)(first.ids.of(ids)), model(first.ids.of(ids)))
    assert fresh.embed.weight.shape == (len(KEEP), 4)


def test_a_model_without_weights_is_planned_for_a_checkpoint(tmp_path: Path) -> None:
    model, ids = Language().eval(), some(2, 3)
    pk.save(model, tmp_path / "whole.safetensors", plan=pk.Plan())
    with torch.device("meta"):
        empty = Language().eval()
    result = pk.prune_vocabulary(empty, KEEP, ids.to("meta"))
    pk.prune_checkpoint(tmp_path / "whole.safetensors", tmp_path / "small.safetensors", result.plan)
    small = pk.load(Language().eval(), tmp_path / "small.safetensors")
    assert torch.equal(small(result.ids.of(ids)), model(ids)[..., KEEP])

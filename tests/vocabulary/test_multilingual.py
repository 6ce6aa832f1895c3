"""A small multilingual model is half as large for one of its languages, and computes the same in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import prunekit as pk
from tests.vocabulary.test_models import whole_numbers

LANGUAGES = {
    "en": "a model reads the words that it is given and writes the words that are likely to come next in a sentence",
    "de": "ein Modell liest die Wörter, die man ihm gibt, und schreibt die Wörter, die im Satz wohl als nächste kommen",
    "fr": "un modèle lit les mots qu'on lui donne et écrit les mots qui viendront sans doute ensuite dans la phrase",
    "el": "ένα μοντέλο διαβάζει τις λέξεις που του δίνουν και γράφει εκείνες που μάλλον ακολουθούν στην πρόταση",
    "fi": "malli lukee sille annetut sanat ja kirjoittaa ne sanat, jotka todennäköisesti tulevat lauseessa seuraavaksi",
}
SPECIAL = {"special_tokens": ["<unk>", "<s>"], "show_progress": False}
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
KINDS: Mapping[str, Callable[[], tuple[Any, Any, Any]]] = {
    "BPE of bytes": lambda: (
        models.BPE(),
        pre_tokenizers.ByteLevel(),
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=ALPHABET, **SPECIAL),
    ),
    "WordPiece": lambda: (
        models.WordPiece(unk_token="<unk>"),
        pre_tokenizers.BertPreTokenizer(),
        trainers.WordPieceTrainer(vocab_size=900, **SPECIAL),
    ),
    "Unigram": lambda: (
        models.Unigram(),
        pre_tokenizers.Metaspace(),
        trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **SPECIAL),
    ),
    "WordLevel": lambda: (
        models.WordLevel(unk_token="<unk>"),
        pre_tokenizers.Whitespace(),
        trainers.WordLevelTrainer(vocab_size=900, **SPECIAL),
    ),
}


class Multilingual(nn.Module):
    """Most of its parameters are an embedding and a head."""

    def __init__(self, size: int, tied: bool) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(size, 16), nn.Linear(16, 16), nn.Linear(16, size)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(ids)).relu())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_language_needs_half_of_the_model(kind: str, tied: bool) -> None:
    model_of_tokens, words, trainer = KINDS[kind]()
    tokenizer = Tokenizer(model_of_tokens)
    tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator(LANGUAGES.values(), trainer)
    torch.manual_seed(0)
    model = whole_numbers(Multilingual(tokenizer.get_vocab_size(), tied)).eval()
    own = LANGUAGES["en"]
    ids = torch.tensor([tokenizer.encode(own).ids])
    before = model(ids)
    result = pk.prune_vocabulary(model, [own], ids, tokenizer=tokenizer)
    preview = result.plan.preview()
    bytes_stay = kind == "BPE of bytes"  # 256 of its tokens are single bytes
    assert preview.params_after < (0.75 if bytes_stay else 0.5) * preview.params_before
    assert preview.params_after == sum(parameter.numel() for parameter in model.parameters())
    small = Tokenizer.from_str(json.dumps(result.tokenizer))
    parts = own.split()
    for text in (own, " ".join(reversed(parts)), " ".join(parts[3:9])):
        old = tokenizer.encode(text).ids
        if set(old) <= set(result.ids.kept):
            assert small.encode(text).ids == [result[number] for number in old]
    new = torch.tensor([small.encode(own).ids])
    assert torch.equal(new, result.ids.of(ids))
    assert torch.equal(model(new), before[..., list(result.ids.kept)])
    for other in ("de", "el"):  # of other languages what is left still writes something
        assert all(number < len(result) for number in small.encode(LANGUAGES[other]).ids)

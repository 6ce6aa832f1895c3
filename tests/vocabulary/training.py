"""Tokenizers of every kind, trained on Python's own help texts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pydoc_data.topics import topics
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from prunekit_plugins.vocabulary.segmentation import BYTES

TEXTS = [text for _, text in sorted(topics.items())][:30]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
OTHER = "naïve Ωμέγα 漢字 \U0001f600"
"""Text with characters that the texts don't have."""


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    trained(tokenizer, trainer).add_special_tokens(["<|endoftext|>", "<|pad|>"])
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<|pad|>"), pad_token="<|pad|>")
    return tokenizer


def whole_words_first() -> Tokenizer:
    """As Llama 3's: a word that is a token isn't merged together."""
    data = as_data(byte_level())
    data["model"]["ignore_merges"] = True
    return from_data(data)


def byte_fallback() -> Tokenizer:
    """As Llama 2's and Gemma's: no bytes but for characters that aren't known."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained(tokenizer, trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL, show_progress=False))
    data = as_data(tokenizer)
    vocabulary = data["model"]["vocab"]
    vocabulary.update({token: len(vocabulary) + place for place, token in enumerate(BYTES)})
    data["model"]["byte_fallback"] = True
    tokenizer = from_data(data)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """As Llama 2's is converted from SentencePiece: no words, and a merge for every split of a piece in two pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False))
    data = as_data(tokenizer)
    model = data["model"]
    pieces = [first + second for first, second in model["merges"]]
    parts = [(piece[:place], piece[place:]) for piece in dict.fromkeys(pieces) for place in range(1, len(piece))]
    model["merges"] = [pair for pair in parts if pair[0] in model["vocab"] and pair[1] in model["vocab"]]
    model["vocab"].update({token: len(model["vocab"]) + place for place, token in enumerate(BYTES)})
    model["byte_fallback"], data["pre_tokenizer"] = True, None
    tokenizer = from_data(data)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def suffixed() -> Tokenizer:
    """As CLIP's: a suffix says where words end, and characters may be unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    trained(tokenizer, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def prefixed() -> Tokenizer:
    """BPE with a prefix on what continues a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False
    )
    return trained(tokenizer, trainer)


def word_piece() -> Tokenizer:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=800, special_tokens=SPECIAL, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's, XLM-R's, mBART's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    trained(tokenizer, trainer)
    template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.post_processor = processors.Sequence([template, processors.ByteLevel()])
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(tokenizer, trainers.WordLevelTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False))


MAKERS: Mapping[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker
    for maker in (
        byte_level,
        whole_words_first,
        byte_fallback,
        suffixed,
        prefixed,
        word_piece,
        unigram,
        word_level,
    )
}


@functools.cache
def data_of(kind: str) -> str:
    return MAKERS[kind]().to_str()


def made(kind: str) -> Tokenizer:
    """Returns a tokenizer of a kind; it is trained once."""
    return tokenizers.Tokenizer.from_str(data_of(kind))


def as_data(tokenizer: Tokenizer) -> Any:
    return json.loads(tokenizer.to_str())


def from_data(data: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(data))

"""Vocabularies: fewer tokens in a tokenizer, and the rows of a model that stood for the others removed."""

from prunekit_plugins.vocabulary.call import VocabularyResult, prune_classes, prune_vocabulary
from prunekit_plugins.vocabulary.ids import IdMap
from prunekit_plugins.vocabulary.tokenizer import closed, rewritten

__all__ = ["IdMap", "VocabularyResult", "closed", "prune_classes", "prune_vocabulary", "rewritten"]

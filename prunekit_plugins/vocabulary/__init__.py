"""Vocabularies: fewer tokens in a tokenizer, and the rows of a model that stood for the others removed."""

from prunekit_plugins.vocabulary.ids import IdMap
from prunekit_plugins.vocabulary.tokenizer import closed, rewritten

__all__ = ["IdMap", "closed", "rewritten"]

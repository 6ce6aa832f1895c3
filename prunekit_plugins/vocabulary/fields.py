"""Ids of tokens in the fields of configurations: which fields hold them, and what they become.

Configurations of transformers (of models, of generation, of tokenizers) name ids in fields whose names say so. That is
what is known here, and all that is known of transformers' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from prunekit_plugins.vocabulary.ids import IdMap

SINGLE = re.compile(r"(_token_ids?|_token_index|^(pad|eos|bos|unk|mask)_index|^padding_idx)$")
"""Fields with an id, or a list of ids that all count (``eos_token_id``)."""
LISTED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Fields with ids, or lists of them, that only matter as long as they are there."""
FORCED = ("forced_decoder_ids",)
"""Fields with pairs of a position and an id."""
NAMED = ("lang_to_id", "task_to_id")
"""Fields with a mapping of names to ids."""
NUMBERED = ("added_tokens_decoder",)
"""Fields with a mapping of ids, which JSON writes as text, to what they are."""
COUNTS = ("vocab_size",)
"""Fields with the number of ids."""
CLASS_COUNTS = ("num_labels", "num_classes")
"""Fields with the number of classes."""
LABELS = ("id2label",)
"""Fields with a mapping of classes to their names."""
NAMED_CLASSES = ("label2id",)
"""Fields with a mapping of names to classes."""


def named_ids(table: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the ids that have to stay because a configuration names them: field, with those around it, to its ids.

    Args:
        table: What a configuration holds by name; configurations in it are searched as well. Negative ids are none.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path, fields in _tables(table, ""):
        for name, value in fields.items():
            ids = tuple(ids_in(name, value))
            if ids:
                found[path + name] = ids
    return found


def _tables(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields a table of fields, and those of the configurations in it."""
    yield path, table
    for name, value in table.items():
        if isinstance(value, Mapping) and name not in (*NAMED, *NUMBERED):
            yield from _tables(value, f"{path}{name}.")


def ids_in(name: str, value: Any) -> Iterator[int]:
    """Yields the ids in a field that have to stay because it names them; none where its name says nothing of ids."""
    if SINGLE.search(name):
        values = value if isinstance(value, list | tuple) else [value]
    elif name in FORCED:
        values = [pair[1] for pair in value or ()]
    elif name in NAMED and isinstance(value, Mapping):
        values = [*value.values()]
    elif name in NUMBERED and isinstance(value, Mapping):
        values = [int(number) for number in value]
    else:
        values = []
    yield from (one for one in values if type(one) is int and one >= 0)


def renumber(table: MutableMapping[str, Any], ids: IdMap, size: int) -> dict[str, tuple[Any, Any]]:
    """Writes new ids into a configuration, in place.

    Args:
        table: What it holds by name; configurations in it are changed as well.
        ids: What ids become. A single id that doesn't stay (one beyond the vocabulary) is left as it is.
        size: The number of ids before; fields that count them and say so follow.

    Returns:
        Field to its value before and after.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for path, fields in _tables(table, ""):
        assert isinstance(fields, MutableMapping)
        for name, old in list(fields.items()):
            new = renumbered(name, old, ids, size)
            if new != old:
                fields[name] = new
                changed[path + name] = (old, new)
    return changed


def renumbered(name: str, value: Any, ids: IdMap, size: int) -> Any:
    """Returns the value of a field with new ids; the same value where its name says nothing of ids."""
    if name in COUNTS:
        return len(ids) if value == size else value
    if SINGLE.search(name):
        return [_new(one, ids) for one in value] if isinstance(value, list | tuple) else _new(value, ids)
    if name in LISTED:
        return _those_left(value, ids)
    if name in FORCED and value:
        return [[place, _new(old, ids)] for place, old in value]
    if name in NAMED and isinstance(value, Mapping):
        return {key: _new(old, ids) for key, old in value.items()}
    if name in NUMBERED and isinstance(value, Mapping):
        return {str(ids[int(old)]): held for old, held in value.items() if int(old) in ids}
    return value


def _new(value: Any, ids: IdMap) -> Any:
    return ids.get(value, value) if type(value) is int else value


def _those_left(value: Any, ids: IdMap) -> Any:
    """Returns ids that stay under their new numbers; of lists of ids (a word) those of which every one stays."""
    if not isinstance(value, list | tuple):
        return value
    words = [_those_left(one, ids) if isinstance(one, list | tuple) else ids.get(one) for one in value]
    return [new for new, old in zip(words, value, strict=True) if new is not None and _whole(new, old)]


def _whole(new: Any, old: Any) -> bool:
    return not isinstance(old, list | tuple) or len(new) == len(old)


def renumbered_class(name: str, value: Any, classes: IdMap, size: int) -> Any:
    """Returns the value of a field with new numbers of classes; see `renumbered`."""
    if name in CLASS_COUNTS:
        return len(classes) if value == size else value
    if not isinstance(value, Mapping) or len(value) != size:
        return value
    if name in LABELS:
        return {type(old)(classes[int(old)]): label for old, label in value.items() if int(old) in classes}
    if name in NAMED_CLASSES:
        return {label: classes[old] for label, old in value.items() if old in classes}
    return value

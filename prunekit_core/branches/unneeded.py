"""Operations of a program that lost branches whose results nothing reads any more, though they still run."""

from __future__ import annotations

import attrs

from prunekit_core.branches.needs import Needs
from prunekit_core.branches.surgery import Surgery
from prunekit_core.branches.without import reduced
from prunekit_core.groups.analysis import Analysis


def without_unneeded(whole: Analysis, surgery: Surgery) -> Analysis:
    """Returns what is left of a model without the operations that are read by nothing but what its branches computed.

    A program that makes something for each layer before these run (a mask, a layer of a cache) makes it for fewer once
    a layer has left its list. What writes to parameters and buffers stays.

    Args:
        whole: The analysed model.
        surgery: How it lost its branches.

    Returns:
        The analysis of ``surgery`` itself if there are no such operations.
    """
    recordings, fewer = [], False
    for position, after in enumerate(surgery.analysis.recordings):
        unneeded = _unneeded(whole, surgery, position)
        recordings.append(reduced(after, unneeded) if unneeded else after)
        fewer = fewer or bool(unneeded)
    return attrs.evolve(surgery.analysis, recordings=tuple(recordings)) if fewer else surgery.analysis


def _unneeded(whole: Analysis, surgery: Surgery, position: int) -> set[int]:
    """Finds the indices, in what is left of a recording, of operations whose readers are all gone."""
    before, left = Needs(whole.recordings[position].trace), Needs(surgery.analysis.recordings[position].trace)
    places = surgery.places(before.trace, position)
    readers: dict[int, set[int]] = {}
    for index, read in enumerate(before.sources):
        for source in (source for _, sources in read for source in sources):
            readers.setdefault(source, set()).add(index)
    gone = set(surgery.removed[position])
    found = set[int]()
    for index in sorted(readers, reverse=True):
        place = places.get(index)
        if place is not None and readers[index] <= gone and not left.needed[place] and not left.names_written([place]):
            gone.add(index)
            found.add(place)
    return found

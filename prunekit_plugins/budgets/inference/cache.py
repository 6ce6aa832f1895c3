"""Memory of a cache: the keys and values, or states, that a model returns for its next call."""

from __future__ import annotations

from collections.abc import Iterator

from prunekit_core.algebra.polynomial import SymbolicSizer, as_polynomial, multiplied
from prunekit_core.errors import ArgumentError
from prunekit_core.groups.analysis import Analysis
from prunekit_core.groups.costs import Compiled, CostModel, compile_sum
from prunekit_core.groups.recording import Recording
from prunekit_core.program.decoding import parameters_of
from prunekit_plugins.budgets.counts import weights

NAMES = ("cache", "past_key_values", "cache_params")
"""What caches are called among outputs, whatever the forward calls its arguments."""


def cache_tensors(analysis: Analysis) -> list[int]:
    """Lists the tensors of the cache that a model returns, by `TensorRef.index`, in the program that costs count.

    A cache is what a model returns under the name of an argument of its own forward, or under one of `NAMES`. Numbers
    in it without a batch (lengths, flags) don't count.

    Args:
        analysis: The analysed model.
    """
    recording = analysis.counted[-1][0]
    found = {ref.index: None for ref in recording.trace.handed}
    found.update(dict.fromkeys(_named(analysis, recording)))
    return [index for index in found if len(recording.trace.shapes[index]) > 1]


def _named(analysis: Analysis, recording: Recording) -> Iterator[int]:
    arguments = {*parameters_of(analysis.shadow.modules[""].forward), *NAMES}
    for name, ref in zip(recording.trace.names, recording.trace.results, strict=True):
        if "." in name and name.split(".")[0] in arguments:
            yield ref.index


class CacheCost(CostModel):
    """Bytes of the cache that a model returns for its example inputs: keys and values of as many tokens as they have.

    Layers with a sliding window hold as many as that; several queries share the keys and values of a head. All of it is
    read off the recorded program. Heads and head dims of a cache stay unless ``free_outputs=["cache"]`` releases them.

    Args:
        with_weights: Whether the bytes of parameters and buffers count as well.
    """

    unit = "bytes"
    previewed = False

    def __init__(self, *, with_weights: bool) -> None:
        self._with_weights = with_weights

    def compile(self, analysis: Analysis) -> Compiled:
        """Adds all tensors of the cache up to one polynomial.

        Raises:
            ArgumentError: The model returns no cache.
        """
        tensors = cache_tensors(analysis)
        if not tensors:
            raise ArgumentError(
                "The model returns no cache.",
                where=type(analysis.shadow.modules[""]).__name__,
                why="nothing with tensors in it is returned under the name of an argument of forward, for these inputs",
                hint="example inputs with use_cache=True, or another cost, such as memory",
            )
        recording, total = analysis.counted[-1][0], as_polynomial(0)
        for index in tensors:
            width = recording.trace.dtypes[index].itemsize
            total += multiplied(recording.shape(index, SymbolicSizer())) * width
        held = compile_sum(total, analysis)
        if not self._with_weights:
            return held
        fixed = weights.compile(analysis)
        return lambda sizes: fixed(sizes) + held(sizes)


kv_cache = CacheCost(with_weights=False)
"""Bytes of the cache; see `CacheCost`."""
kv_memory = CacheCost(with_weights=True)
"""Bytes of the cache, of parameters and of buffers."""

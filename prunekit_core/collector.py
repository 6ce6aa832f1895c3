"""The cycle collector, paused while many objects are made that stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from prunekit_core.interrupts import put_back
from prunekit_core.shortcuts import PLAIN


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses the cycle collector, reference counting goes on.

    Plugins that are imported and models that are analysed make many small objects that stay, and each full collection
    walks all of PyTorch's: by `benchmarks/speed.py` three quarters of what loading the plugins took in a first call.
    """
    with put_back() as back:
        if gc.isenabled() and not PLAIN:
            back.callback(gc.enable)
            gc.disable()
        yield

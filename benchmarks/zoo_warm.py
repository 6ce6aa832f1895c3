"""Imported once by the server that the zoo's processes are forked from, so that they don't each pay for the imports."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

for name in ("torchvision.models", "timm", "transformers", "transformers.modeling_utils", "torch._dynamo"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
importlib.import_module("zoo_worker" if importlib.util.find_spec("prunekit_core") else "zoo_rival")

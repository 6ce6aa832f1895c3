"""Imported once by the server that the zoo's processes are forked from, so that they don't each pay for the imports.

The environment variable ``ZOO_WARM`` names the families that will be asked for, separated by commas.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os

USUAL = ("torchvision.models", "timm", "transformers", "transformers.modeling_utils", "torch._dynamo")

for name in (*USUAL, *filter(None, os.environ.get("ZOO_WARM", "").split(","))):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
importlib.import_module("zoo_worker" if importlib.util.find_spec("prunekit_core") else "zoo_rival")

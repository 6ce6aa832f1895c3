"""Imported once by the server that the zoo's processes are forked from, so that they don't each pay for the imports.

The environment variable ``ZOO_WARM`` names the families that will be asked for, separated by commas.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os

HUGGING_FACE = ("transformers", "transformers.modeling_utils", "torch._dynamo")
MODULES = {
    "torchvision": ["torchvision.models"],
    "timm": ["timm"],
    "transformers": HUGGING_FACE,
    "model_types": (*HUGGING_FACE, "torchvision"),
    "peft": (*HUGGING_FACE, "peft"),
    "monai": ["monai.networks.nets"],
    "torch_geometric": ["torch_geometric.nn"],
    "neuralforecast": ["neuralforecast.models"],
    "ultralytics": ["ultralytics.nn.tasks"],
}

families = [name for name in os.environ.get("ZOO_WARM", "").split(",") if name]
for name in (module for family in families for module in MODULES.get(family, [family])):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
importlib.import_module("zoo_worker" if importlib.util.find_spec("prunekit_core") else "zoo_rival")

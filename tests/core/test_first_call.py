"""What the first call of a process imports, and that all shortcuts of recording can be switched off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NETS = {
    "linear": "nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), torch.randn(2, 4)",
    "gated": "nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, 3), nn.Softmax(-1)),"
    "torch.randn(2, 4)",
    "convolutions": "nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),"
    "nn.Conv2d(8, 16, 3),"
    "nn.GroupNorm(4, 16), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4)),"
    "torch.randn(2, 3, 16, 16)",
    "pictures": "nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode='bilinear'), nn.Conv2d(8, 4, 1)),"
    "torch.randn(2, 3, 16, 16)",
}


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_the_first_call_imports_no_compiler(net: str) -> None:
    program = f"""
import sys
import torch
from torch import nn
import prunekit as pk
model, inputs = {NETS[net]}
pk.prune(model, inputs, ratio=0.5)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]"]


@pytest.mark.slow
def test_the_compiler_is_kept_out_of_modes_once_it_is_there() -> None:
    program = """
import torch
from torch import nn
import prunekit as pk
from prunekit_core.torch_private.dispatch import uncompiled
calls = []
@uncompiled
def looks():
    calls.append(torch.compiler.is_compiling())
looks()
import torch._dynamo
whole = torch.compile(lambda x: (looks(), x + 1)[1], backend="eager")
assert whole(torch.ones(2)).tolist() == [2, 2]
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
print(pk.prune(model, torch.randn(2, 4), ratio=0.5).plan.kept != {}, calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["True [False, False]"]


@pytest.mark.slow
def test_nothing_changes_without_shortcuts() -> None:
    """`tests/replay.py`, in a process of its own: the switch is read when prunekit is imported."""
    environment = {**os.environ, "PRUNEKIT_PLAIN": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/test_replay.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout

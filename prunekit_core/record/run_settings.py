"""The settings that forwards of shadows run with: settings of the whole process, changed for a moment and put back.

PyTorch has one switch per process for its libraries and for fused attention. So one shadow runs at a time, whichever
thread it belongs to: what two threads save and put back in turns would not be what was there at first. Switches that a
model doesn't depend on aren't touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterator

import torch
from torch import nn

from prunekit_core.interrupts import held_back, put_back
from prunekit_core.record.random_numbers import OtherRandomNumbers
from prunekit_core.torch_private import kernels

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
_turn = threading.RLock()


def _new_turn() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):  # in a child, the thread whose turn it was doesn't exist
    os.register_at_fork(after_in_child=_new_turn)


class RunSettings:
    """The settings that a model's forwards run with, in a recording and in every replay.

    - Where a forward draws from the generators of Python or NumPy, every run draws the same.
    - Recurrent layers don't run as one operation of oneDNN or cuDNN, attention not as one of the fused fast paths.
    - The log of operations that don't fit is off: in a replay, that is an answer.

    Args:
        modules: The modules of the model.
        log: The logger of operations that don't fit on fake tensors.
    """

    def __init__(self, modules: Collection[nn.Module], log: logging.Logger) -> None:
        self._random_numbers, self._log = OtherRandomNumbers(), log
        self._recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
        self._fused = any(isinstance(module, _FUSED) for module in modules)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Sets everything for the time of one forward, when no other one runs."""
        with _turn, put_back() as back:
            back.callback(setattr, self._log, "disabled", self._log.disabled)
            self._log.disabled = True
            if self._recurrent:
                back.callback(kernels.set_mkldnn_enabled, kernels.get_mkldnn_enabled())
                back.callback(kernels.set_cudnn_enabled, kernels.get_cudnn_enabled())
                kernels.set_mkldnn_enabled(False)
                kernels.set_cudnn_enabled(False)
            if self._fused:
                back.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
            back.enter_context(self._random_numbers())
            yield


@contextlib.contextmanager
def entered(*modes: contextlib.AbstractContextManager[object] | None) -> Iterator[None]:
    """Enters modes of PyTorch in this order, those that there are; whatever ends the block, all are left."""
    with put_back() as back:
        with held_back():
            for mode in modes:
                if mode is not None:
                    back.enter_context(mode)
        yield

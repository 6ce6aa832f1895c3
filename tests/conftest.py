"""Settings of Hypothesis and torch for all tests, and the markers that tests get by their folder.

``HYPOTHESIS_PROFILE=hunt`` looks longer and at other examples each time; the default is small and repeatable.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# fake tensors log every operation that raises; in a rehearsal that is an expected answer
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("hunt", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

OLDER_TORCH = (
    ((2, 13), "test_layers.py::test_layer_type[LSTM(4, 8, proj_size=3)]", "fake final states have a dim too many"),
    ((2, 13), "test_layers.py::test_layer_type[LSTM(4, 6, num_layers=2, bid", "fake final states have a dim too many"),
    ((2, 13), "test_orders.py::test_written_answer[torch._unique", "the fake result has one element"),
    ((2, 12), "test_wounds.py::test_the_expected_groups_are_found[Recomputed]", "not in inference mode"),
    ((2, 12), "test_wounds.py::test_half_of_each_goes_and_the_rest_is_the_same_program[Recomputed]", "the same"),
    ((2, 11), "test_processes.py", "FSDP2 over gloo gives other gradients with more than one process"),
    ((2, 11), "test_wounds.py::test_the_expected_groups_are_found[Packed]", "no aten._grouped_mm on the CPU"),
    ((2, 11), "test_wounds.py::test_half_of_each_goes_and_the_rest_is_the_same_program[Packed]", "the same"),
    ((2, 11), "test_bad_input.py::test_script_modules", "torch.jit doesn't warn"),
    ((2, 11), "test_optimizers.py::test_state_that_is_not_understood", "LBFGS warns"),
    ((2, 11), "test_norms.py::test_written_answer[aten._fused_rms_norm", "another signature"),
    ((2, 11), "test_norms.py::test_by_execution[aten._fused_rms_norm", "another signature"),
    ((2, 11), "test_norms.py::test_every_rule_is_met", "another signature of aten._fused_rms_norm"),
)
"""What PyTorch itself got wrong before a version: first good version, start of a test's name, what."""


TESTS = Path(__file__).parent
MARKED = {
    "zoo": (pytest.mark.zoo,),
    "distributed": (pytest.mark.distributed,),
    "gpu": (pytest.mark.gpu,),
    "thirdparty": (pytest.mark.slow,),  # installs packages
    "benchmarks": (pytest.mark.slow,),  # measures
}
"""The markers of all tests in a folder; everywhere else, what is slow says so."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        for marker in MARKED.get(folder, ()):
            item.add_marker(marker)
        for good, name, what in OLDER_TORCH:
            if found < good and f"/{item.nodeid}".split("/")[-1].startswith(name):
                item.add_marker(pytest.mark.skip(reason=f"PyTorch before {good[0]}.{good[1]}: {what}"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs that are started in the background may ignore interrupts; for this test they don't."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""Settings of Hypothesis and torch for all tests.

``HYPOTHESIS_PROFILE=hunt`` looks longer and at other examples each time; the default is small and repeatable.
"""

from __future__ import annotations

import logging
import os

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

"""The kit with which a plugin's author proves what a plugin brings; see `prunekit_plugins.testing`.

The fixture ``prunekit_registry`` is switched on with ``pytest_plugins = ["prunekit.testing.pytest_plugin"]``.
"""

from prunekit_plugins.testing import (
    AxesRead,
    check_compensator,
    check_cost,
    check_criterion,
    check_layer_type,
    check_regularizer,
    check_rule,
    check_schedule,
    read_axes,
    sample,
)

__all__ = [
    "AxesRead",
    "check_compensator",
    "check_cost",
    "check_criterion",
    "check_layer_type",
    "check_regularizer",
    "check_rule",
    "check_schedule",
    "read_axes",
    "sample",
]

"""The kit with which a plugin's author proves what a plugin brings.

Every check runs what it is given and raises ``AssertionError`` with the place and the difference when the plugin is
wrong. A check that could see no difference (nothing free, nothing pruned) fails as well. The fixture
``prunekit_registry`` of ``prunekit.testing.pytest_plugin`` makes isolated registries; that module isn't imported
here, because it needs pytest.
"""

from prunekit_plugins.testing.compensator_check import check_compensator
from prunekit_plugins.testing.cost_check import check_cost
from prunekit_plugins.testing.criterion_check import check_criterion
from prunekit_plugins.testing.layers.layer_check import check_layer_type
from prunekit_plugins.testing.reading import AxesRead, read_axes, sample
from prunekit_plugins.testing.regularizer_check import check_regularizer
from prunekit_plugins.testing.rule_check import check_rule
from prunekit_plugins.testing.schedule_check import check_schedule

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

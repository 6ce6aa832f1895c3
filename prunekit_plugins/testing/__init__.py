"""The kit with which a plugin's author proves what a plugin brings.

Every check runs what it is given and raises ``AssertionError`` with the place and the difference when the plugin is
wrong. A check that could see no difference (nothing free, nothing pruned) fails as well. `check_plugin` makes all of
them. The fixture ``prunekit_registry`` of ``prunekit.testing.pytest_plugin`` makes isolated registries; that module
isn't imported here, because it needs pytest.
"""

from prunekit_plugins.testing.allocator_check import check_allocator
from prunekit_plugins.testing.command_check import check_command
from prunekit_plugins.testing.compensator_check import check_compensator
from prunekit_plugins.testing.cost_check import check_cost
from prunekit_plugins.testing.criterion_check import check_criterion
from prunekit_plugins.testing.failure import UnseenError
from prunekit_plugins.testing.layers.layer_check import check_layer_type
from prunekit_plugins.testing.layers.replacement_check import check_replacement
from prunekit_plugins.testing.plugin_check import Checked, Outcome, check_plugin
from prunekit_plugins.testing.pruner_check import check_pruner
from prunekit_plugins.testing.reading import AxesRead, read_axes, sample
from prunekit_plugins.testing.regularizer_check import check_regularizer
from prunekit_plugins.testing.rule_check import check_rule
from prunekit_plugins.testing.schedule_check import check_schedule
from prunekit_plugins.testing.serving_check import check_serving_profile
from prunekit_plugins.testing.weights_check import check_weights

__all__ = [
    "AxesRead",
    "Checked",
    "Outcome",
    "UnseenError",
    "check_allocator",
    "check_command",
    "check_compensator",
    "check_cost",
    "check_criterion",
    "check_layer_type",
    "check_plugin",
    "check_pruner",
    "check_regularizer",
    "check_replacement",
    "check_rule",
    "check_schedule",
    "check_serving_profile",
    "check_weights",
    "read_axes",
    "sample",
]

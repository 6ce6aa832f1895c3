"""The kit with which a plugin's author proves what a plugin brings; see `prunekit_plugins.testing`.

The fixture ``prunekit_registry`` is switched on with ``pytest_plugins = ["prunekit.testing.pytest_plugin"]``.
"""

from prunekit_plugins import testing
from prunekit_plugins.testing import *  # noqa: F403  # the list of names stands there

__all__ = testing.__all__

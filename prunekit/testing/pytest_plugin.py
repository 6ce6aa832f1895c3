"""The fixture ``prunekit_registry``: registries that hold what a test says and nothing else."""

from prunekit_plugins.testing.pytest_plugin import prunekit_registry

__all__ = ["prunekit_registry"]

pytest_plugins = ["prunekit_core.testing.pytest_plugin"]

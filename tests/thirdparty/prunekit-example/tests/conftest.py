pytest_plugins = ["prunekit.testing.pytest_plugin"]

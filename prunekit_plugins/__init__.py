"""The built-in plugins of prunekit; each comes in through its own entry point."""

"""Plugins: hooks, the registry that freezes what they brought, settings, and whose fault an error is."""

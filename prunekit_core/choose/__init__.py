"""Choosing what goes: scores, scopes, candidates, and the pruner that does it in steps."""

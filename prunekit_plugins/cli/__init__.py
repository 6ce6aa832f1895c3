"""Stub for now."""

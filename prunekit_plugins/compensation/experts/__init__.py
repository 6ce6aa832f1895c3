"""Weights of experts and their tokens, for merging."""

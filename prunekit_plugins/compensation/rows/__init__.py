"""Layers that see other rows once a model is cut: which they are, and what they see in both models."""

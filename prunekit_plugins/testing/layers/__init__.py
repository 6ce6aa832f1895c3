"""Proving what is declared about layers: layer types, opaque layers, replacements."""

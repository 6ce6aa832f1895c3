"""Rows: which tokens, or examples, of a batch a tensor holds, followed through running programs."""

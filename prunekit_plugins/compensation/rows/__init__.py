"""Rows: which tokens, or examples, of a batch a layer sees, and layers that see other ones once a model is cut."""

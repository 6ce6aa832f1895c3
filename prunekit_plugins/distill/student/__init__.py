"""A student while it is trained: what of it is, and how its forward runs."""

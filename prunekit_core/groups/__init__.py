"""Groups of units: which rows of which tensors go together, what they cost, and what is pinned for which reason."""

"""Random programs, drawn from a grammar of what a model's forward may hold, pruned and held against a masked copy."""

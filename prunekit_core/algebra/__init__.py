"""What a tensor dimension means, and how meanings are tied: no modules, no operations."""

"""The oracle: a pruned model against the original with the removed units zeroed."""

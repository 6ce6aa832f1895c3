"""``prunekit demo``: two small models on real data, trained, pruned to half their cost, and distilled."""

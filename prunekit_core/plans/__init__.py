"""Plans: what goes, as data, and how it is applied to a model."""

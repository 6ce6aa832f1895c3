"""The one call that prunes a model to a ratio or to a target."""

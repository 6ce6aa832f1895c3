"""The dependency graph as users handle it: groups, channels, and where a model stands after cuts."""

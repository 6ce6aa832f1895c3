"""Projects: their settings, and what these name."""

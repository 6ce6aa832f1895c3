"""Engines that serve what was exported: run in processes of their own, and compared with the model."""

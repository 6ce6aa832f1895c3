"""Repairing a pruned model on calibration data, before any training."""

"""Experts in calibration: mixtures found in recorded programs, programs run without some experts, and statistics."""

"""Experts in calibration: mixtures found in recorded programs, and what data say about their experts."""

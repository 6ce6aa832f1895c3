"""Branches: operands of sums that can be switched off."""

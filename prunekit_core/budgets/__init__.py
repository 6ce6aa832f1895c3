"""Budgets: targets, sensitivity, and how a budget is shared out."""

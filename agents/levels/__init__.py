"""Levels of a budget: which numbers of units there are to choose from, and the choice."""

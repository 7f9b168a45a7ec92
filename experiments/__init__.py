"""Cells of methods and of agents: run, record, tabulate."""

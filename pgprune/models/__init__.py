"""Families, loading, weights on disk, and losses of tokens."""

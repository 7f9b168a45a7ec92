"""Families, loading, and weights on disk."""

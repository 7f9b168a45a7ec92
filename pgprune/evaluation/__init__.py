"""Perplexity, zero-shot accuracy, size and latency of finished models."""

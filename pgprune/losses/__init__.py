"""Losses of next tokens from hidden states, of windows, and divergence from the dense model."""

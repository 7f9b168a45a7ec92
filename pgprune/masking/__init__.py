"""Units, and the masked model with its executors."""

"""Units, budget, rounding, and the masked model with its executors: the heart."""

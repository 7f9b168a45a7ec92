"""Which masks are allowed: the budget, its projection, rounding and levels; and a problem."""

"""A look at a model before it is pruned: what it is made of, what targets need, what it needs."""

"""Commands: each parses its options, calls the packages below and prints what came of it."""

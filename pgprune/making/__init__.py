"""The whole way from a dense model to files of a smaller one: search, recovery, export."""

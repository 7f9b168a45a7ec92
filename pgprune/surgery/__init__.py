"""A mask becomes a physically smaller model."""

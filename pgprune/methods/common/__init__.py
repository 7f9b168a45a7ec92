"""What methods are made of: their definition and options, and loops that several share."""

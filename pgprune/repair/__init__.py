"""Closed-form repair of the weights that a mask keeps."""

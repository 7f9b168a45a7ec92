"""Code that exported models carry with them; it imports nothing of pgprune."""

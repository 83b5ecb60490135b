"""A run: its directory, its records, its beginning and its end."""

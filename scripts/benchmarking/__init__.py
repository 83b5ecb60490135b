"""What scripts/benchmark.py is made of: the sides that train, and how they are timed."""

"""The parts of scripts/benchmark.py: the programs that it times, and how it times them."""

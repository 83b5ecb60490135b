"""Reproduce, sweep and diagnose the ways a neural network fails to train."""

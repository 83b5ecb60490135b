"""The training loop and its parts: clipping, checkpoints, range test, per-layer statistics."""

"""Finished runs as tables and figures; needs no torch."""

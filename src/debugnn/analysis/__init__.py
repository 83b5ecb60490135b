"""Tables and figures of finished runs; needs no torch."""

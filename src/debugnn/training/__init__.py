"""How a network is trained: the loop and what happens in it."""

"""What is trained: networks, their initialisation, and losses."""

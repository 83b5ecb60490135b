"""Networks, their layers and initialisation, and losses."""

"""How good the nano model is, measured on held-out data."""

"""Training and evaluation data: seeded generators of conversations, and text that the machine already has."""

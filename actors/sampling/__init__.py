"""Logits to tokens, one row at a time."""
